"""Scores of one pass against forwards of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vcrd_ray.judges.packed_trees import BoolArray
from vcrd_ray.types import FloatArray, JudgeScores

NUM_BRANCHES = 8
"""Branches that a run compares on its first batch."""


def largest_difference(
    scores: JudgeScores,
    separately: Callable[[Sequence[int]], tuple[FloatArray, FloatArray]],
    *,
    differs: BoolArray,
    count: int,
    seed: int,
) -> float:
    """Largest difference in logit over `count` random rows, of those with a score of their own for the proposal, if any.

    Infinite where a logit is no number; 0 where there is nothing to compare.

    Args:
        scores: of the whole request.
        separately: rows -> logits of their own tokens and proposals, each by a forward of its own.
        differs: rows whose proposal was scored apart from the trajectory's token. [N]
        count: rows to compare.
        seed: of the choice.
    """
    rows = np.flatnonzero(differs if differs.any() else ~differs)
    chosen = np.random.default_rng(seed).choice(rows, size=min(count, len(rows)), replace=False)
    own, other = separately(chosen.tolist())
    difference = np.abs([scores.trunk_logit[chosen] - own, scores.branch_logit[chosen] - other])
    return float(np.max(np.nan_to_num(difference, nan=np.inf), initial=0.0))
