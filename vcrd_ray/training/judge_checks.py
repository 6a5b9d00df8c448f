"""When a judge is not to be trusted any more: a failed self-check, too many scores that are no numbers. Runs no model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from vcrd_ray.config.models import Judge, ModelJudge
from vcrd_ray.errors import JudgeError
from vcrd_ray.training.signals import SignalSource
from vcrd_ray.types import IntArray, PairBatch, Side


@dataclass(frozen=True, kw_only=True)
class JudgeBounds:
    """What a judge may get wrong before the run stops."""

    max_invalid_share: float
    self_check_tolerance: float | None
    """None: the judge scores proposals one by one, there is nothing to compare."""

    @classmethod
    def of(cls, section: Judge) -> JudgeBounds:
        """Those of a configured judge."""
        return cls(
            max_invalid_share=section.max_invalid_share,
            self_check_tolerance=section.tolerance if isinstance(section, ModelJudge) else None,
        )

    def check_share(self, update: int, metrics: Mapping[str, float]) -> None:
        """
        Raises:
            JudgeError: too many scores of an update are no numbers.
        """
        judged, invalid = metrics["judge/judged_rows"], metrics["judge/invalid_rows"]
        if invalid > self.max_invalid_share * (judged + invalid):
            raise JudgeError(
                f"update {update}: {invalid:.0f} of {judged + invalid:.0f} scores are NaN, infinite or missing, more than"
                f" judge.max_invalid_share {self.max_invalid_share}; check the judge's checkpoint and dtype"
            )


class SelfCheck:
    """Packed against separate judging, once a run, on the first micro-batch."""

    def __init__(self, signals: SignalSource, tolerance: float | None, *, wanted: bool) -> None:
        self._signals = signals
        self._tolerance = tolerance
        self._due = wanted and tolerance is not None
        self.difference: float | None = None
        """Largest difference in logit; None before, or where nothing is compared."""

    def run(self, batch: PairBatch, side: Side, proposals: IntArray) -> None:
        """The first time, compare some branches of one side's request.

        Raises:
            JudgeError: they differ by more than the tolerance.
        """
        if not self._due:
            return
        self._due = False
        self.difference = self._signals.self_check(batch, side, proposals)
        assert self._tolerance is not None
        if not math.isfinite(self.difference):
            raise JudgeError(
                f"update {batch.update}: packed and separate judging differ by {self.difference}: the judge's scores are NaN or"
                " infinite; check its checkpoint, or load it in another judge.dtype"
            )
        if not self.difference <= self._tolerance:
            raise JudgeError(
                f"packed and separate judging differ by {self.difference:.3g} in logit on the first batch, more than"
                f" {self._tolerance} (judge.self_check_tolerance); use judge.dtype float32, or report this model's attention"
            )
