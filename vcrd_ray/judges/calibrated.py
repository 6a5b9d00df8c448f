"""A judge whose logits are mapped to measured shares of right answers, by where in a response they are read.

Owns the classes of read positions, the maps and the file format. Knows nothing of how maps are fitted (that is
vcrd_ray/report/calibration.py), nor of Ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from vcrd_ray.errors import ModelError
from vcrd_ray.judges import Judge
from vcrd_ray.models.checkpoint_files import special_ids, token_ids_with
from vcrd_ray.types import FloatArray, IntArray, JudgeRequest, JudgeScores, StepSolution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PositionClass = Literal["step_end", "step_start", "mid_step"]
POSITION_CLASSES: tuple[PositionClass, ...] = ("step_end", "step_start", "mid_step")
NOT_TEXT = -1
"""Class of special tokens; of others it is the index in `POSITION_CLASSES`."""


class IsotonicMap(BaseModel):
    """Piecewise linear in the logit, never falling, constant beyond its first and last knot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["isotonic"] = "isotonic"
    logits: tuple[FiniteFloat, ...] = Field(min_length=1)
    """Knots, ascending."""
    mapped: tuple[FiniteFloat, ...]
    """Calibrated logit at each knot."""

    @model_validator(mode="after")
    def _is_monotone(self) -> Self:
        if len(self.logits) != len(self.mapped):
            raise ValueError(f"{len(self.logits)} knots and {len(self.mapped)} values")
        if np.any(np.diff(self.logits) <= 0) or np.any(np.diff(self.mapped) < 0):
            raise ValueError("knots must ascend and their values must not fall")
        return self

    def apply(self, logit: FloatArray) -> FloatArray:
        """Calibrated logits; what is no finite number becomes NaN."""
        values = np.asarray(self.mapped)
        right = np.searchsorted(self.logits, logit, side="right")
        # By rounding, the line between two knots may leave their values, and order with it.
        low, high = values[np.maximum(right - 1, 0)], values[np.minimum(right, len(values) - 1)]
        mapped = np.clip(np.interp(logit, self.logits, values), low, high)
        return np.where(np.isfinite(logit), mapped, np.nan).astype(np.float32)


class TemperatureMap(BaseModel):
    """slope * logit + offset (Platt); slope = 1 / temperature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["temperature"] = "temperature"
    slope: FiniteFloat = Field(gt=0)
    offset: FiniteFloat

    def apply(self, logit: FloatArray) -> FloatArray:
        """Calibrated logits; NaN stays NaN."""
        return (self.slope * logit.astype(np.float64) + self.offset).astype(np.float32)


LogitMap = Annotated[IsotonicMap | TemperatureMap, Field(discriminator="kind")]


class Calibration(BaseModel):
    """Maps of one judge's logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: str
    """Fingerprint of the judge that was measured."""
    family: str
    method: Literal["isotonic", "temperature"]
    maps: dict[PositionClass, LogitMap]
    """A class that could not be fitted is absent."""

    @property
    def fingerprint(self) -> str:
        """Short hash over all of it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]


def read_calibration(path: Path) -> Calibration:
    """The maps in a calibration.json.

    Raises:
        ModelError: no such file, or not one that jobs.calibrate wrote.
    """
    try:
        return Calibration.model_validate(json.loads(path.read_text(encoding="utf-8"))["calibration"])
    except OSError as error:
        raise ModelError(
            f"judge.calibration {path}: cannot be read ({error.strerror}); run jobs.calibrate, which writes"
            " RUN/calibration/calibration.json, or set judge.calibration to null"
        ) from None
    except (ValidationError, ValueError, KeyError, TypeError):
        raise ModelError(
            f"judge.calibration {path}: not a calibration.json of jobs.calibrate; run jobs.calibrate again"
        ) from None


class StepPositions:
    """Response tokens -> their class, for one policy tokenizer.

    A step ends with a token whose text holds a line break, and with the last token of text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._breaks = np.array(sorted(token_ids_with(tokenizer, "\n")), dtype=np.int64)
        self._special = np.array(sorted(special_ids(tokenizer)), dtype=np.int64)

    def classes(self, response: IntArray) -> IntArray:
        """Index in `POSITION_CLASSES` of each token, `NOT_TEXT` for special ones. [T]"""
        classes = np.full(len(response), NOT_TEXT, dtype=np.int32)
        text = np.flatnonzero(~np.isin(response, self._special))
        if len(text):
            ends = np.isin(response[text], self._breaks)
            ends[-1] = True
            starts = np.append(True, ends[:-1])
            classes[text] = np.where(ends, 0, np.where(starts, 1, 2))
        return classes


class CalibratedJudge(Judge):
    """Another judge, both logits of each row mapped by the class of its trajectory position.

    One map for both proposals of a row, so that equal scores stay equal. Special tokens, whose scores nobody measures, and
    all tokens under a judge of whole steps go by the map of step ends.
    """

    def __init__(self, judge: Judge, calibration: Calibration, *, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the judge, its calibration and the policy's tokenizer.

        Raises:
            ModelError: the calibration is another judge's, or lacks a class.
        """
        inner = judge.profile
        if calibration.judge != inner.fingerprint:
            raise ModelError(
                f"judge.calibration was made for the judge {calibration.judge} ({calibration.family}), this one is"
                f" {inner.fingerprint} ({inner.family}); run jobs.calibrate with this judge, or set judge.calibration to null"
            )
        needed = POSITION_CLASSES if inner.scores == "token" else POSITION_CLASSES[:1]
        missing = [name for name in needed if name not in calibration.maps]
        if missing:
            raise ModelError(
                f"judge.calibration has no map for {', '.join(missing)}: the rollouts that it was made on were all right or"
                " all wrong; run jobs.calibrate on rollouts with right and wrong answers"
            )
        self._judge = judge
        self._maps = calibration.maps
        self._positions = StepPositions(tokenizer)
        self.profile = replace(inner, fingerprint=f"{inner.fingerprint}+calibration-{calibration.fingerprint}")

    def score(self, request: JudgeRequest) -> JudgeScores:
        """Calibrated logits of every trajectory token and of every proposal."""
        scores = self._judge.score(request)
        if self.profile.scores == "token":
            classes = np.concatenate([np.zeros(0, np.int32), *map(self._positions.classes, request.responses)])
            classes[classes == NOT_TEXT] = 0
        else:
            classes = np.zeros(len(scores.trunk_logit), dtype=np.int32)
        trunk, proposal = scores.trunk_logit.copy(), scores.branch_logit.copy()
        for index in np.unique(classes):
            rows = classes == index
            for logit in (trunk, proposal):
                logit[rows] = self._maps[POSITION_CLASSES[index]].apply(logit[rows])
        return replace(scores, trunk_logit=trunk, branch_logit=proposal)

    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        """Mapped by the map of step ends."""
        return [self._maps["step_end"].apply(logits) for logits in self._judge.score_steps(solutions)]

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        """The inner judge's, in its own logits."""
        return self._judge.self_check(request, num_branches=num_branches, seed=seed)
