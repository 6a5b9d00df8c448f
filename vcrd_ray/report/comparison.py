"""Accuracies of methods over seeds -> means, intervals and paired differences. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vcrd_ray.config.base import CONFIDENCE


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One method over its seeds, and beside the reference on the same seeds."""

    method: str
    num_seeds: int
    mean: float
    low: float
    high: float
    """95% interval of the mean over seeds (Student's t); NaN with one seed."""
    difference: float
    difference_low: float
    difference_high: float
    """95% interval of the mean difference to the reference on equal seeds; NaN with one seed."""
    p_value: float
    """Of the paired t-test that the difference is 0; NaN with one seed or where all differences are equal."""


def compare(values: Mapping[str, Mapping[int, float]], *, reference: str) -> list[Comparison]:
    """Each method beside the reference, in the order given.

    Args:
        values: value of each (method, seed).

    Raises:
        ValueError: the reference is missing, or a method has no seed in common with it.
    """
    if reference not in values:
        raise ValueError(f"no results of {reference}, which the others are compared with")
    return [_compare(method, of_method, values[reference]) for method, of_method in values.items()]


def _compare(method: str, values: Mapping[int, float], reference: Mapping[int, float]) -> Comparison:
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        raise ValueError(f"{method} has no seed in common with the reference")
    own = np.array([values[s] for s in seeds])
    differences = own - np.array([reference[s] for s in seeds])
    low, high = _interval(own)
    difference_low, difference_high = _interval(differences)
    varies = len(seeds) > 1 and bool(np.ptp(differences) > 0)
    return Comparison(
        method=method,
        num_seeds=len(seeds),
        mean=float(own.mean()),
        low=low,
        high=high,
        difference=float(differences.mean()),
        difference_low=difference_low,
        difference_high=difference_high,
        p_value=float(stats.ttest_1samp(differences, 0.0).pvalue) if varies else float("nan"),
    )


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean by Student's t."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half
