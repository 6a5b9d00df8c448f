"""Counts -> figures with intervals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest


class Accuracy(BaseModel):
    """A share with its Wilson interval."""

    model_config = ConfigDict(frozen=True)

    correct: int
    total: int
    pass_at_1: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        return f"{100 * self.pass_at_1:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson_interval(share: float, total: int, *, confidence: float) -> tuple[float, float]:
    """The Wilson score interval of a mean of `total` scores between 0 and 1.

    ( s + z^2/2n +- z sqrt(s(1-s)/n + z^2/4n^2) ) / (1 + z^2/n), which stays inside [0, 1] and is right for small n and for
    shares near 0 or 1, where the normal interval is not. Scores of 0 and 1 alone have the variance s(1-s) that it supposes;
    ties have less, so that the interval is then wider than it need be, never narrower.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = share + z * z / (2 * total)
    spread = z * sqrt(max(0.0, share * (1 - share)) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # At the ends the formula gives 0 and 1 exactly; its rounding must not.
    low = (centre - spread) / scale if share > 0 else 0.0
    high = (centre + spread) / scale if share < 1 else 1.0
    return max(0.0, low), min(1.0, high)


def accuracy(*, correct: int, total: int, confidence: float) -> Accuracy:
    """Share of correct answers with its Wilson interval.

    Raises:
        ValueError: nothing was counted.
    """
    if total <= 0:
        raise ValueError("no answers to take a share of")
    low, high = wilson_interval(correct / total, total, confidence=confidence)
    return Accuracy(correct=correct, total=total, pass_at_1=correct / total, low=low, high=high, confidence=confidence)


def bootstrap_interval(
    values: Sequence[float], *, confidence: float, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentiles of the mean over samples drawn with replacement.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    array, rng = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    means = np.array([array[rng.integers(0, len(array), len(array))].mean() for _ in range(resamples)])
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


class PairedDifference(BaseModel):
    """Two models on the same questions."""

    model_config = ConfigDict(frozen=True)

    num_questions: int
    difference: float
    """Mean share of right answers of the second less that of the first."""
    low: float
    high: float
    """Bootstrap over questions."""
    better: int
    """Questions on which the second does better."""
    worse: int
    p_value: float
    """Exact sign test over questions that differ (McNemar's with one answer each)."""
    detectable: float
    """Smallest true difference that a test at the 5% level on so many questions, as often different as these, finds in four
    cases of five."""


def paired_difference(first: Sequence[float], second: Sequence[float], *, confidence: float) -> PairedDifference:
    """Compare shares of right answers on the same questions in the same order.

    Raises:
        ValueError: nothing to compare, or different numbers of questions.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} questions cannot be paired")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    better, worse = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    low, high = bootstrap_interval(differences, confidence=confidence)
    num = len(differences)
    # At least one question must be seen to differ: with none the spread is not known to be nothing.
    spread = sqrt(max(sum(d * d for d in differences), 1.0) / num)
    return PairedDifference(
        num_questions=num,
        difference=sum(differences) / num,
        low=low,
        high=high,
        better=better,
        worse=worse,
        p_value=float(binomtest(better, better + worse).pvalue) if better + worse else 1.0,
        detectable=(NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * spread / sqrt(num),
    )
