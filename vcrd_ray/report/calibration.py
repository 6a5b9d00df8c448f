"""A judge's logits on checked responses -> what its scores are worth, and maps that calibrate them. Pure.

The label of every read is whether its response ends right. So a right token of a response that goes wrong later counts as
wrong: not even a perfect judge of tokens reaches an AUC of 1. Reads of one response share their label, so responses, not
tokens, are what intervals resample and what bounds a fitted share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

from vcrd_ray.config.base import CONFIDENCE
from vcrd_ray.evaluation.statistics import bootstrap_interval
from vcrd_ray.judges import JudgeProfile
from vcrd_ray.judges.calibrated import (
    POSITION_CLASSES,
    Calibration,
    IsotonicMap,
    LogitMap,
    PositionClass,
    TemperatureMap,
)
from vcrd_ray.report.calibration_figures import (
    FEWEST_RESPONSES,
    HISTOGRAM_BINS,
    NUM_BINS,
    SATURATED,
    Agreement,
    Bin,
    ClassFigures,
    Method,
    Quality,
)

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_RESAMPLES = 500
_LOG_SLOPES = (-7.0, 7.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reads:
    """Finite logits and where each was read. All arrays [N]."""

    logit: Floats
    right: Booleans
    """Whether the response ends right."""
    response: Integers
    prompt: Integers
    """Which response and which prompt it belongs to."""

    def where(self, chosen: Booleans) -> Reads:
        """Some of them."""
        return Reads(
            logit=self.logit[chosen],
            right=self.right[chosen],
            response=self.response[chosen],
            prompt=self.prompt[chosen],
        )


def auc(logit: Floats, right: Booleans, weight: Floats | None = None) -> float:
    """Chance that a right read scores higher than a wrong one, ties counted half; NaN where either is missing."""
    levels, level = np.unique(logit, return_inverse=True)
    return _auc(level, len(levels), right, np.ones(len(logit)) if weight is None else weight)


def _auc(level: Integers, num_levels: int, right: Booleans, weight: Floats) -> float:
    good = np.bincount(level, weights=weight * right, minlength=num_levels)
    bad = np.bincount(level, weights=weight * ~right, minlength=num_levels)
    pairs = good.sum() * bad.sum()
    below = np.cumsum(bad) - bad
    return float(np.sum(good * (below + bad / 2)) / pairs) if pairs else float("nan")


def auc_interval(reads: Reads, *, seed: int) -> tuple[float, float]:
    """Percentile bootstrap interval of the AUC; NaN where it is undefined.

    Whole prompts are resampled, because the responses to one prompt are right or wrong together.
    """
    if _one_sided(reads.right):
        return float("nan"), float("nan")
    levels, level = np.unique(reads.logit, return_inverse=True)
    prompts, prompt = np.unique(reads.prompt, return_inverse=True)

    def auc_of(drawn: Integers) -> float:
        times = np.bincount(drawn, minlength=len(prompts))
        return _auc(level, len(levels), reads.right, times[prompt].astype(np.float64))

    low, high = bootstrap_interval(auc_of, len(prompts), confidence=CONFIDENCE, resamples=_RESAMPLES, seed=seed)
    return float(low), float(high)


def reliability_bins(logit: Floats, right: Booleans) -> tuple[Bin, ...]:
    """Mean score and share of right answers in bins of equal width."""
    score = expit(logit)
    index = np.minimum((score * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    counts = np.bincount(index, minlength=NUM_BINS)
    scores, rights = (np.bincount(index, weights=values, minlength=NUM_BINS) for values in (score, right))
    return tuple(
        Bin(
            low=b / NUM_BINS,
            high=(b + 1) / NUM_BINS,
            count=int(n),
            mean_score=float(scores[b] / n) if n else None,
            share_right=float(rights[b] / n) if n else None,
        )
        for b, n in enumerate(counts)
    )


def quality(logit: Floats, right: Booleans) -> Quality:
    """ECE = sum_b n_b/N |share right - mean score|; Brier = mean (score - right)^2; mean of -ln of what came true."""
    gaps = [
        b.count * abs(b.mean_score - b.share_right)
        for b in reliability_bins(logit, right)
        if b.mean_score is not None and b.share_right is not None
    ]
    return Quality(
        ece=sum(gaps) / len(logit),
        brier=float(np.mean((expit(logit) - right) ** 2)),
        log_loss=float(np.mean(np.logaddexp(0.0, np.where(right, -logit, logit)))),
    )


def fit_isotonic(reads: Reads) -> IsotonicMap:
    """Isotonic regression, a knot at the mean logit of each of its blocks and straight lines between.

    The share p of a block with reads of m responses becomes (p m + 1/2) / (m + 1), so that no share is 0 or 1.
    """
    _, level, counts = np.unique(reads.logit, return_inverse=True, return_counts=True)
    share = np.bincount(level, weights=reads.right) / counts
    starts = isotonic_regression(share, weights=counts).blocks
    block = np.searchsorted(starts, level, side="right") - 1
    size = np.bincount(block)
    pairs = np.unique(np.stack([block, reads.response]), axis=1)
    responses = np.bincount(pairs[0])
    shrunk = (np.bincount(block, weights=reads.right) / size * responses + 0.5) / (responses + 1)
    # A small block moves further to 1/2 than a large one, which may break the order.
    shrunk = isotonic_regression(shrunk, weights=size).x
    knots = np.bincount(block, weights=reads.logit) / size
    return IsotonicMap(logits=tuple(knots.tolist()), mapped=tuple(np.log(shrunk / (1 - shrunk)).tolist()))


def fit_temperature(reads: Reads) -> TemperatureMap:
    """Least log loss over (slope > 0, offset), with Platt's targets: (R + 1) / (R + 2) and 1 / (W + 2).

    R and W are the right and the wrong responses; so a judge that separates them does not get an infinite slope.
    """
    right, wrong = (len(np.unique(reads.response[chosen])) for chosen in (reads.right, ~reads.right))
    target = np.where(reads.right, (right + 1) / (right + 2), 1 / (wrong + 2))

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, offset = np.exp(parameters[0]), parameters[1]
        mapped = slope * reads.logit + offset
        value = float(np.mean(np.logaddexp(0.0, mapped) - target * mapped))
        error = (expit(mapped) - target) / len(target)
        return value, np.array([slope * (error @ reads.logit), error.sum()])

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[_LOG_SLOPES, (None, None)])
    return TemperatureMap(slope=float(np.exp(found.x[0])), offset=float(found.x[1]))


def fitting_prompts(prompts: Integers, *, seed: int) -> Integers:
    """The half of the prompts that maps are fitted on, drawn by the seed; the other half is held out."""
    unique = np.unique(prompts)
    return np.random.default_rng(seed).permutation(unique)[: (len(unique) + 1) // 2]


def class_figures(
    reads: Reads, *, invalid: int, fitted_prompts: Integers, method: Method, seed: int
) -> tuple[ClassFigures, LogitMap | None]:
    """Figures of one class, and its map where the fitting half has right and wrong answers."""
    fitted = np.isin(reads.prompt, fitted_prompts)
    fit, held_out = reads.where(fitted), reads.where(~fitted)
    notes = []
    one_sided = _one_sided(reads.right)
    if one_sided:
        notes.append(f"all answers are {one_sided}: AUC is undefined")
    num_responses, num_right = (len(np.unique(r)) for r in (reads.response, reads.response[reads.right]))
    if not one_sided and _too_few(num_responses, num_right):
        notes.append(f"{num_right} right and {num_responses - num_right} wrong responses are too few for an interval")
    mapped: LogitMap | None = None
    if len(fit.right) == 0 or _one_sided(fit.right):
        notes.append("no map: the prompts to fit on have no right and wrong answers")
    else:
        mapped = fit_isotonic(fit) if method == "isotonic" else fit_temperature(fit)
    before = after = None
    if mapped is not None and len(held_out.right):
        before = quality(held_out.logit, held_out.right)
        after = quality(mapped.apply(held_out.logit.astype(np.float32)).astype(np.float64), held_out.right)
    low, high = (float("nan"),) * 2 if _too_few(num_responses, num_right) else auc_interval(reads, seed=seed)
    score = expit(reads.logit)
    figures = ClassFigures(
        reads=len(score),
        invalid=invalid,
        responses=num_responses,
        right_responses=num_right,
        auc=_known(auc(reads.logit, reads.right)),
        auc_low=_known(low),
        auc_high=_known(high),
        mean_score=float(score.mean()),
        share_right=float(reads.right.mean()),
        quality=quality(reads.logit, reads.right),
        saturated_low=float(np.mean(score < SATURATED)),
        saturated_high=float(np.mean(score > 1 - SATURATED)),
        bins=reliability_bins(reads.logit, reads.right),
        histogram=tuple(np.histogram(score, bins=HISTOGRAM_BINS, range=(0, 1))[0].tolist()),
        fitted_reads=len(fit.right),
        held_out_reads=len(held_out.right),
        held_out_before=before,
        held_out_after=after,
        note="; ".join(notes) or None,
    )
    return figures, mapped


def calibrate(
    reads: Reads, classes: npt.NDArray[np.integer[Any]], *, profile: JudgeProfile, method: Method, seed: int
) -> tuple[Calibration, dict[PositionClass, ClassFigures]]:
    """Maps and figures of all classes that have finite reads.

    Args:
        reads: of all positions; those that are not finite are counted and left out.
        classes: index in `POSITION_CLASSES`; others are left out. [N]
        profile: the judge's.
        method: kind of map.
        seed: of the split and of the bootstrap.
    """
    prompts = fitting_prompts(reads.prompt, seed=seed)
    finite = np.isfinite(reads.logit)
    figures: dict[PositionClass, ClassFigures] = {}
    maps: dict[PositionClass, LogitMap] = {}
    for index, name in enumerate(POSITION_CLASSES):
        own = classes == index
        if not np.any(own & finite):
            continue
        invalid = int(np.sum(own & ~finite))
        figures[name], mapped = class_figures(
            reads.where(own & finite), invalid=invalid, fitted_prompts=prompts, method=method, seed=seed
        )
        if mapped is not None:
            maps[name] = mapped
    return Calibration(judge=profile.fingerprint, family=profile.family, method=method, maps=maps), figures


def agreement(logit: Floats, other: Floats, classes: npt.NDArray[np.integer[Any]]) -> dict[PositionClass, Agreement]:
    """Agreement of two judges a class, over the positions where both say a number."""
    found: dict[PositionClass, Agreement] = {}
    for index, name in enumerate(POSITION_CLASSES):
        both = (classes == index) & np.isfinite(logit) & np.isfinite(other)
        if both.any():
            a, b = logit[both], other[both]
            varied = np.ptp(a) > 0 and np.ptp(b) > 0
            found[name] = Agreement(
                reads=len(a),
                spearman=float(stats.spearmanr(a, b).statistic) if varied else None,
                same_side=float(np.mean((a >= 0) == (b >= 0))),
            )
    return found


def _too_few(responses: int, right: int) -> bool:
    """Whether a bootstrap over so few responses of one kind would claim to know more than they tell."""
    return min(right, responses - right) < FEWEST_RESPONSES


def _one_sided(right: Booleans) -> str | None:
    return "right" if right.all() else "wrong" if not right.any() else None


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
