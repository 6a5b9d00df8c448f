"""ProcessBench (github.com/QwenLM/ProcessBench): solutions whose first wrong step is known, and the authors' figure.

Asks a judge through its protocol; knows no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vcrd_ray.data.json_rows import BadRow, check_whole, objects
from vcrd_ray.errors import DataError, ModelError
from vcrd_ray.judges import Judge
from vcrd_ray.types import FloatArray, StepSolution

_BATCH = 16  # items of a request, so that memory is bounded and progress can be shown
NO_ERROR = -1
"""Label of a solution without a wrong step."""


class BenchItem(BaseModel):
    """One solution. Fields that are not listed are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: str
    problem: str
    steps: list[str] = Field(min_length=1)
    label: int = Field(ge=NO_ERROR)
    """Index of the first wrong step, or `NO_ERROR`."""

    @model_validator(mode="after")
    def _names_a_step(self) -> BenchItem:
        if self.label >= len(self.steps):
            raise ValueError(f"label {self.label} of {len(self.steps)} steps")
        return self

    @property
    def solution(self) -> StepSolution:
        """As a judge is asked about it."""
        return StepSolution(question=self.problem, steps=tuple(self.steps))


class BenchFigures(BaseModel):
    """One file's result. An accuracy is None where no item of its kind was scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    threshold: float
    error_items: int
    """Scored items that have a wrong step."""
    error_accuracy: float | None
    """Share of them whose first wrong step was found."""
    correct_items: int
    correct_accuracy: float | None
    """Share of the items without a wrong step in which none was found."""
    f1: float | None
    """Harmonic mean of the two."""
    skipped: int
    """Items that the judge could not score, in neither count."""
    skip_reason: str | None
    """Of the first of them."""


def read_processbench(path: Path, *, max_items: int | None = None) -> list[BenchItem]:
    """The first items of a file of JSON rows.

    Raises:
        DataError: no such file, a malformed row, or no row at all: a benchmark is read whole or not at all.
    """
    items = []
    for where, row in islice(objects(path, what="--processbench"), max_items):
        try:
            items.append(BenchItem.model_validate(row))
            check_whole("\n".join([items[-1].id, items[-1].problem, *items[-1].steps]), "a text of it")
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{where}: {key or 'item'}: {first['msg']}") from None
        except BadRow as error:
            raise DataError(f"{where}: {error}") from None
    return items


def first_error(logits: FloatArray, *, threshold: float) -> int:
    """Index of the first step that scores below the threshold, or `NO_ERROR`."""
    below = np.flatnonzero(logits.astype(np.float64) < np.log(threshold) - np.log1p(-threshold))
    return int(below[0]) if len(below) else NO_ERROR


def bench_figures(
    name: str, labels: Sequence[int], predicted: Sequence[int], *, threshold: float, skip_reasons: Sequence[str] = ()
) -> BenchFigures:
    """Accuracies of both kinds of items and their harmonic mean."""
    label, hit = np.asarray(labels, dtype=np.int64), np.equal(labels, predicted)
    wrong = label != NO_ERROR
    error, correct = (float(hit[kind].mean()) if kind.any() else None for kind in (wrong, ~wrong))
    f1 = None
    if error is not None and correct is not None:
        f1 = 2 * error * correct / (error + correct) if error + correct else 0.0
    return BenchFigures(
        name=name,
        threshold=threshold,
        error_items=int(wrong.sum()),
        error_accuracy=error,
        correct_items=int((~wrong).sum()),
        correct_accuracy=correct,
        f1=f1,
        skipped=len(skip_reasons),
        skip_reason=skip_reasons[0] if skip_reasons else None,
    )


def judge_items(
    judge: Judge,
    name: str,
    items: Sequence[BenchItem],
    *,
    threshold: float,
    on_batch: Callable[[int], None] = lambda count: None,
) -> BenchFigures:
    """What a judge finds in all items; those that it cannot read are counted as skipped.

    Raises:
        DataError: it can read none.
    """
    labels, predicted, reasons = [], [], []
    for start in range(0, len(items), _BATCH):
        batch = items[start : start + _BATCH]
        for item, logits in zip(batch, _score_steps(judge, [item.solution for item in batch]), strict=True):
            if isinstance(logits, str):
                reasons.append(f"{item.id}: {logits}")
            else:
                labels.append(item.label)
                predicted.append(first_error(logits, threshold=threshold))
        on_batch(len(batch))
    if not labels:
        raise DataError(f"ProcessBench {name}: the judge can read none of {len(items)} items; the first: {reasons[0]}")
    return bench_figures(name, labels, predicted, threshold=threshold, skip_reasons=reasons)


def _score_steps(judge: Judge, solutions: Sequence[StepSolution]) -> list[FloatArray | str]:
    """Logits of each solution's steps, or why the judge has none."""
    try:
        scored = judge.score_steps(solutions)
    except ModelError as error:
        if len(solutions) == 1:
            return [str(error)]
        # One solution that cannot be read refuses the whole request.
        return [found for solution in solutions for found in _score_steps(judge, [solution])]
    return ["the score of a step is no number" if np.isnan(logits).any() else logits for logits in scored]
