"""Counts of correct samples -> pass@k and mean@k. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, fsum


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """What became of one item's samples."""

    num_samples: int
    num_correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_correct <= self.num_samples:
            raise ValueError(f"{self.num_correct} correct of {self.num_samples} samples")


def pass_at_k(samples: Samples, k: int) -> float:
    """Chance that one of k samples drawn without replacement is correct: 1 - C(n-c, k) / C(n, k).

    Counted in whole numbers and rounded once, so right to the last bit for any n.

    Raises:
        ValueError: k is not in 1..n.
    """
    _check(samples, k)
    drawn = comb(samples.num_samples, k)
    return (drawn - comb(samples.num_samples - samples.num_correct, k)) / drawn


def mean_at_k(samples: Samples, k: int) -> float:
    """Expected share of correct ones among k samples drawn without replacement, which is c/n for every k.

    Raises:
        ValueError: k is not in 1..n.
    """
    _check(samples, k)
    return samples.num_correct / samples.num_samples


def mean_pass_at_k(items: Sequence[Samples], k: int) -> float:
    """pass@k of a benchmark: its items' mean.

    Raises:
        ValueError: there are no items, or one has fewer than k samples.
    """
    return _mean([pass_at_k(samples, k) for samples in items])


def mean_mean_at_k(items: Sequence[Samples], k: int) -> float:
    """mean@k of a benchmark: its items' mean, each item counting once.

    Raises:
        ValueError: there are no items, or one has fewer than k samples.
    """
    return _mean([mean_at_k(samples, k) for samples in items])


def _check(samples: Samples, k: int) -> None:
    if not 1 <= k <= samples.num_samples:
        raise ValueError(f"k is {k} of {samples.num_samples} samples; take k from 1 to the number of samples")


def _mean(shares: Sequence[float]) -> float:
    if not shares:
        raise ValueError("no items to take a mean of")
    return fsum(shares) / len(shares)
