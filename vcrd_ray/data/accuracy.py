"""Counts of right answers -> a share with its interval. Pure."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

from pydantic import BaseModel, ConfigDict


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
