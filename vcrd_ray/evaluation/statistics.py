"""Counts -> figures with intervals. Pure."""

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


def accuracy(*, correct: int, total: int, confidence: float) -> Accuracy:
    """Share of correct answers with its Wilson score interval.

    The interval is ( s + z^2/2n +- z sqrt(s(1-s)/n + z^2/4n^2) ) / (1 + z^2/n), which stays inside [0, 1] and is right for
    small n and for shares near 0 or 1, where the normal interval is not.

    Raises:
        ValueError: nothing was counted.
    """
    if total <= 0:
        raise ValueError("no answers to take a share of")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return Accuracy(
        correct=correct,
        total=total,
        pass_at_1=share,
        # At the ends the formula gives 0 and 1 exactly; its rounding must not.
        low=(centre - spread) / scale if correct > 0 else 0.0,
        high=(centre + spread) / scale if correct < total else 1.0,
        confidence=confidence,
    )
