"""Counts -> figures with intervals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

Floats = npt.NDArray[np.float64]
_RESAMPLES = 10_000


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], npt.ArrayLike],
    num: int,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[Floats, Floats]:
    """Percentiles of a statistic over samples drawn with replacement; samples where it is undefined (NaN) are left out.

    By hand, because scipy's bootstrap refuses a single thing, and one undefined sample makes its interval undefined.

    Args:
        statistic: which things were drawn, by index, to one figure or several.
        num: things to draw from, and things in a sample.
    """
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(num, size=num)) for _ in range(resamples)])
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def mean_interval(values: Sequence[float], *, confidence: float) -> tuple[float, float]:
    """`bootstrap_interval` of the mean.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a mean of")
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap_interval(
        lambda drawn: array[drawn].mean(), len(array), confidence=confidence, resamples=_RESAMPLES, seed=0
    )
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
    low, high = mean_interval(differences, confidence=confidence)
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
