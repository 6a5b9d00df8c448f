"""Scores of several teachers' responses -> the teachers in order, on the prompts they share. Pure.

A teacher's score is the mean over prompts of the mean over its responses; for RSR, a quotient, numerators and denominators
are averaged each (arXiv:2601.14249, A.8). Prompts are resampled, the same for all teachers, so that what makes a prompt
hard cancels in the differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from vcrd_ray.config.base import CONFIDENCE
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.statistics import bootstrap_interval
from vcrd_ray.selection.scores import LOWER_IS_BETTER, ResponseScore

_RESAMPLES = 2000
Floats = npt.NDArray[np.float64]


class RankedTeacher(BaseModel):
    """One teacher's score over the shared prompts. Intervals are 95% percentile bootstrap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    num_prompts: int
    """Prompts with a score, shared or not."""
    mean: float
    low: float
    high: float
    difference: float
    """To the best teacher, on the same prompts; 0 for itself."""
    difference_low: float
    difference_high: float


class TeacherRanking(BaseModel):
    """Teachers, the best first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: str
    lower_is_better: bool
    num_shared_prompts: int
    seed: int
    teachers: tuple[RankedTeacher, ...]


def rank_teachers(
    scores: Mapping[str, Mapping[str, Sequence[ResponseScore]]], *, score: str, seed: int
) -> TeacherRanking:
    """Order teachers by their mean score over shared prompts; of equals the first named.

    Args:
        scores: of each teacher, the scores of its responses to each prompt id; one response at least.

    Raises:
        DataError: no prompt is shared by all.
    """
    sets = [set(prompts) for prompts in scores.values()]
    shared = sorted(set.intersection(*sets)) if sets else []
    if not shared:
        counts = ", ".join(f"{name}: {len(prompts)}" for name, prompts in scores.items())
        raise DataError(
            f"no prompt has a score from every teacher (prompts with one: {counts}); make the rollouts of all teachers with"
            " the same rollouts.prompts"
        )
    names = list(scores)
    # [teachers, prompts, 2]
    parts = np.array(
        [
            [np.mean([(s.numerator, s.denominator) for s in scores[name][prompt]], axis=0) for prompt in shared]
            for name in names
        ]
    )
    lower = score in LOWER_IS_BETTER
    means = _quotients(parts)
    order = np.argsort(means if lower else -means, kind="stable")

    def beside_the_best(means: Floats) -> Floats:
        return np.stack([means, means - means[order[0]]])

    (low, difference_low), (high, difference_high) = bootstrap_interval(
        lambda drawn: beside_the_best(_quotients(parts[:, drawn])),
        len(shared),
        confidence=CONFIDENCE,
        resamples=_RESAMPLES,
        seed=seed,
    )
    means, difference = beside_the_best(means)
    ranked = [
        RankedTeacher(
            name=names[i],
            num_prompts=len(scores[names[i]]),
            mean=float(means[i]),
            low=float(low[i]),
            high=float(high[i]),
            difference=float(difference[i]),
            difference_low=float(difference_low[i]),
            difference_high=float(difference_high[i]),
        )
        for i in order
    ]
    return TeacherRanking(
        score=score, lower_is_better=lower, num_shared_prompts=len(shared), seed=seed, teachers=tuple(ranked)
    )


def _quotients(parts: Floats) -> Floats:
    """Mean numerator over mean denominator of each teacher. [teachers]"""
    means: Floats = parts.mean(1)
    return np.asarray(means[:, 0] / means[:, 1])
