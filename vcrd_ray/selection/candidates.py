"""A rollouts directory -> the responses of one side that can be scored. Knows nothing of models or scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vcrd_ray.config.base import THINKING, Thinking
from vcrd_ray.data.manifest import check_manifest, read_manifest
from vcrd_ray.data.problems import Reject
from vcrd_ray.data.rollouts import read_parts
from vcrd_ray.errors import DataError
from vcrd_ray.grading.figures import GradingFigures
from vcrd_ray.grading.responses import Response
from vcrd_ray.grading.rollouts import grade_or_count, response_of
from vcrd_ray.models.checkpoint_files import tokenizer_fingerprint
from vcrd_ray.selection.steps import StepSplitter
from vcrd_ray.types import SIDES, IntArray, Side

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_COLUMNS = ("prompt_id", "sample", "answer", "prompt_ids", "teacher_ids", "student_ids")
_REASONS = tuple(f"{side}_finish_reason" for side in SIDES)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """One response to one prompt."""

    prompt_id: str
    sample: int
    """Which response to its prompt it is."""
    block: int
    row: int
    """Where it stands in the rollouts."""
    prompt_ids: IntArray
    response_ids: IntArray
    """Without special tokens at its end. [T], T >= 1."""
    steps: tuple[slice, ...]
    """Ranges of `response_ids`, one at least, that cover it."""
    correct: bool | None
    """Whether it gives the gold answer; None where there is none that a response could meet."""


def read_candidates(
    directory: Path,
    *,
    side: Side,
    tokenizer: PreTrainedTokenizerBase,
    splitter: StepSplitter,
    max_length: int,
    thinking: Thinking = THINKING,
) -> tuple[list[Candidate], list[Reject], GradingFigures]:
    """All responses of one side, the rejects (rows that training would reject or that have no text), and what became of them.

    Raises:
        DataError: no rollouts there, incomplete, made with another tokenizer, or nothing usable in them.
    """
    # Whose responses they are is no matter; the token ids must mean the same to the student.
    teacher = read_manifest(directory).teacher
    manifest = check_manifest(directory, teacher=teacher, tokenizer=tokenizer_fingerprint(tokenizer))
    candidates: list[Candidate] = []
    rejects: list[Reject] = []
    responses: list[Response] = []
    for block, table in enumerate(read_parts(directory, manifest)):
        for row, content in enumerate(table.select([*_COLUMNS, *_REASONS]).to_pylist()):
            prompt = str(content["prompt_id"])
            try:
                ids = _checked_ids(content, vocab_size=len(tokenizer), max_length=max_length)
            except (DataError, TypeError, ValueError) as error:
                rejects.append(_reject(block, content, str(error)))
                continue
            steps = splitter.split(ids[f"{side}_ids"])
            if not steps:
                rejects.append(_reject(block, content, f"the {side}'s response has no text in it, and so no step"))
                continue
            response = ids[f"{side}_ids"][: steps[-1].stop]
            candidates.append(
                Candidate(
                    prompt_id=prompt,
                    sample=int(content["sample"]),
                    block=block,
                    row=row,
                    prompt_ids=ids["prompt_ids"],
                    response_ids=response,
                    steps=steps,
                    correct=None,
                )
            )
            responses.append(response_of(content, side, tokenizer=tokenizer, thinking=thinking))
    if not candidates:
        first = f"; first reason: {rejects[0].reason}" if rejects else ""
        raise DataError(f"{directory}: no usable response of the {side} in it{first}")
    checked, figures = grade_or_count(responses, directory, thinking)
    graded = [replace(one, correct=found.right) for one, found in zip(candidates, checked, strict=True)]
    return graded, rejects, figures


def _reject(block: int, row: Mapping[str, Any], reason: str) -> Reject:
    where = f"block {block}, prompt {row['prompt_id']!r}, sample {row['sample']}"
    return Reject(row=where, reason=f"{where}: {reason}")


def _checked_ids(row: Mapping[str, Any], *, vocab_size: int, max_length: int) -> dict[str, IntArray]:
    """The row's token ids, if training would take them."""
    arrays = {name: np.asarray(row[name], dtype=np.int32) for name in ("prompt_ids", "teacher_ids", "student_ids")}
    for name, ids in arrays.items():
        if len(ids) == 0:
            raise DataError(f"{name} is empty")
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise DataError(f"{name} has token ids outside [0, {vocab_size})")
    longest = len(arrays["prompt_ids"]) + max(len(arrays["teacher_ids"]), len(arrays["student_ids"]))
    if longest > max_length:
        raise DataError(f"prompt and response of {longest} tokens are longer than distill.max_length {max_length}")
    return arrays
