"""Tokens of one update -> the sums that its metrics are made of, and the decisions worth keeping.

All statistics are sums, so that micro-batches and ranks add up. Knows nothing of models or actors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from vcrd_ray.method.weighting import Weights
from vcrd_ray.training.on_policy.requests import Written
from vcrd_ray.types import SIDES, Decision, PairBatch, ScoredProposals, Side

_LOG_WEIGHT_EDGES = np.linspace(-6.0, 6.0, 241)
_SATURATED = 0.01
_EXTREMES = 2  # most amplified and most attenuated decisions kept of each micro-batch and side

_SUMS = (
    "response_tokens",
    "loss",
    "unweighted",
    "divergence",
    "agree",
    "judged",
    "above_one",
    "at_least_one",
    "clipped",
    "invalid",
    "saturated",
    "weight",
    "weight_judged",
)
_SECONDS = ("teacher", "judge", "wait_teacher", "wait_judge", "wait_rollouts", "rollouts", "sync")
_COUNTS = (
    "tokens",
    "judge_tokens",
    "quarantined",
    "retries",
    "replica_deaths",
    "responses",
    "renewed",
    "staleness",
    "rollout_tokens",
    "canary_difference",
    "writers",
)


@dataclass(kw_only=True)
class JudgeTraffic:
    """What happened to one rank's judge requests in some time."""

    retries: int = 0
    """Requests sent again because a replica died."""
    replica_deaths: int = 0
    max_in_flight: int = 0
    """Most unfinished requests at a time."""


class Telemetry:
    """Sums over the tokens that one rank has seen in one update."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(_SECONDS, 0.0)
        """Of work, and of standing and waiting for it (`wait_`)."""
        self.counts = dict.fromkeys(_COUNTS, 0.0)
        self._sums: dict[Side, dict[str, float]] = {
            "teacher": dict.fromkeys(_SUMS, 0.0),
            "student": dict.fromkeys(_SUMS, 0.0),
        }
        self._histogram: dict[Side, npt.NDArray[np.float64]] = {
            "teacher": np.zeros(len(_LOG_WEIGHT_EDGES) - 1),
            "student": np.zeros(len(_LOG_WEIGHT_EDGES) - 1),
        }

    @contextmanager
    def waiting(self, name: str) -> Iterator[None]:
        """Held around a wait; its seconds count under this name."""
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started

    def count_tokens(self, batch: PairBatch) -> None:
        """Count what the student's forward reads: prompts of all sequences, and responses."""
        prompts = sum(len(p.prompt_ids) * int((len(p.teacher_ids) > 0) + (len(p.student_ids) > 0)) for p in batch.pairs)
        self.counts["tokens"] += int(batch.layout.lengths.sum()) + prompts

    def add(
        self,
        batch: PairBatch,
        weights: Weights,
        scored: ScoredProposals | None,
        *,
        divergence: npt.NDArray[np.float32],
        coefficient: npt.NDArray[np.float32],
    ) -> None:
        """Add one micro-batch. Arrays are [N] in token order."""
        for pair in batch.pairs:
            if len(pair.student_ids):
                self.counts["responses"] += 1
                self.counts["renewed"] += pair.student_version > 0
                self.counts["staleness"] += batch.update - pair.student_version
        for side in SIDES:
            span, sums = batch.layout.span(side), self._sums[side]
            weight = weights.weight[span]
            judged = weights.judged[span]
            sums["response_tokens"] += len(weight)
            sums["loss"] += float((coefficient[span] * weight * divergence[span]).sum())
            sums["unweighted"] += float((coefficient[span] * divergence[span]).sum())
            sums["divergence"] += float(divergence[span].sum())
            sums["weight"] += float(weight.sum())
            sums["weight_judged"] += float(weight[judged].sum())
            sums["judged"] += int(judged.sum())
            sums["above_one"] += int((weight[judged] > 1).sum())
            sums["at_least_one"] += int((weight >= 1).sum())
            sums["clipped"] += int(weights.clipped[span].sum())
            sums["invalid"] += int(weights.invalid[span].sum())
            if scored is not None:
                agree = scored.teacher_proposal[span] == scored.student_proposal[span]
                sums["agree"] += int(agree.sum())
                score = expit(scored.teacher_logit[span][judged])
                sums["saturated"] += int(((score < _SATURATED) | (score > 1 - _SATURATED)).sum())
            shown = judged if judged.any() else np.ones_like(judged)
            logs = np.clip(np.log(np.maximum(weight[shown], 1e-30)), _LOG_WEIGHT_EDGES[0], _LOG_WEIGHT_EDGES[-1])
            self._histogram[side] += np.histogram(logs, _LOG_WEIGHT_EDGES)[0]

    def add_written(self, written: Written) -> None:
        """Add what a rank's new responses cost."""
        self.seconds["rollouts"] += written.seconds
        self.counts["rollout_tokens"] += sum(len(rollout.ids) for rollout in written.rollouts)
        self.seconds["sync"] += written.sync_s
        self.counts["canary_difference"] += written.canary_difference
        self.counts["writers"] += 1

    def to_vector(self) -> npt.NDArray[np.float64]:
        """All sums in a fixed order, to be added over ranks."""
        parts: list[npt.NDArray[np.float64]] = [np.array([*self.seconds.values(), *self.counts.values()])]
        for side in SIDES:
            parts += [np.array(list(self._sums[side].values())), self._histogram[side]]
        return np.concatenate(parts)

    @staticmethod
    def metrics(vector: npt.NDArray[np.float64], *, world_size: int) -> dict[str, float]:
        """Figures of the whole update from the sum of all ranks' vectors. A share or mean of nothing is left out."""
        cut = len(_SECONDS) + len(_COUNTS)
        seconds = dict(zip(_SECONDS, vector[: len(_SECONDS)], strict=True))
        counts = dict(zip(_COUNTS, vector[len(_SECONDS) : cut], strict=True))
        rest = vector[cut:].reshape(2, -1)
        sums = {side: dict(zip(_SUMS, row[: len(_SUMS)], strict=True)) for side, row in zip(SIDES, rest, strict=True)}
        total = {name: sums["teacher"][name] + sums["student"][name] for name in _SUMS}
        histogram = rest[:, len(_SUMS) :].sum(axis=0)
        figures: dict[str, float | None] = {"loss": total["loss"]}
        for side, of_side in sums.items():
            figures[f"loss/{side}_prefix"] = of_side["loss"]
            figures[f"divergence/{side}_prefix"] = _share(of_side["divergence"], of_side["response_tokens"])
            figures[f"weights/mean_{side}_prefix"] = _share(of_side["weight"], of_side["response_tokens"])
        figures |= {
            # What the weights leave of the loss that the same tokens would have without them: all of it where there is none,
            # as at the first update of a student that is its teacher.
            "weights/strength": total["loss"] / total["unweighted"] if total["unweighted"] else 1.0,
            "weights/mean": _share(total["weight"], total["response_tokens"]),
            "weights/mean_judged": _share(total["weight_judged"], total["judged"]),
            "weights/share_above_one_judged": _share(total["above_one"], total["judged"]),
            "weights/share_at_least_one_all": _share(total["at_least_one"], total["response_tokens"]),
            "weights/clip_rate": _share(total["clipped"], total["response_tokens"]),
            "proposals/agreement": _share(total["agree"], total["response_tokens"]),
            "judge/judged_rows": total["judged"],
            "judge/invalid_rows": total["invalid"],
            "judge/set_aside_rows": counts["quarantined"],
            "judge/retries": counts["retries"],
            "judge/replica_deaths": counts["replica_deaths"],
            "judge/saturation": _share(total["saturated"], total["judged"]),
            "rows": total["response_tokens"],
            "tokens": counts["tokens"],
            "judge/tokens": counts["judge_tokens"],
            "time/teacher_s": seconds["teacher"],
            "time/judge_s": seconds["judge"],
            # Ranks wait at the same time: their mean, not their sum, is what the update lost.
            "wait/teacher_s": seconds["wait_teacher"] / world_size,
            "wait/judge_s": seconds["wait_judge"] / world_size,
        }
        if counts["responses"]:
            # Updates between the student that wrote a response and the one that learns from it.
            figures["rollouts/staleness"] = counts["staleness"] / counts["responses"]
        if counts["writers"]:
            figures |= {
                "rollouts/renewed": _share(counts["renewed"], counts["responses"]),
                "rollouts/tokens": counts["rollout_tokens"],
                "rollouts/canary_difference": counts["canary_difference"] / counts["writers"],
                "time/rollouts_s": seconds["rollouts"],
                "time/sync_s": seconds["sync"],
                "wait/rollouts_s": seconds["wait_rollouts"] / world_size,
            }
        for quantile in (5, 25, 50, 75, 95):
            figures[f"weights/p{quantile:02d}"] = _quantile(histogram, quantile / 100)
        return {name: float(value) for name, value in figures.items() if value is not None}


def pick_decisions(
    batch: PairBatch,
    weights: Weights,
    scored: ScoredProposals,
    divergence: npt.NDArray[np.float32],
    *,
    count: int,
    seed: int,
) -> list[Decision]:
    """A uniform sample of `count` judged tokens of a micro-batch, and beside it the extremes of each side."""
    # A judge of whole steps scores one of the two only.
    judged = np.flatnonzero(weights.judged & np.isfinite(scored.teacher_logit) & np.isfinite(scored.student_logit))
    if count == 0 or len(judged) == 0:
        return []
    rng = np.random.default_rng([seed, batch.update, batch.micro])
    sampled = rng.choice(judged, size=min(count, len(judged)), replace=False)
    by_weight = judged[np.argsort(weights.weight[judged], kind="stable")]
    extremes = np.setdiff1d(np.concatenate([by_weight[:_EXTREMES], by_weight[-_EXTREMES:]]), sampled)
    return [
        *_decisions(batch, weights, scored, divergence, sampled, sampled=True),
        *_decisions(batch, weights, scored, divergence, extremes, sampled=False),
    ]


def _decisions(
    batch: PairBatch,
    weights: Weights,
    scored: ScoredProposals,
    divergence: npt.NDArray[np.float32],
    tokens: Sequence[int] | npt.NDArray[np.int64],
    *,
    sampled: bool,
) -> list[Decision]:
    layout = batch.layout
    return [
        Decision(
            update=batch.update,
            pair=batch.pairs[layout.pair[token]].id,
            side="teacher" if layout.is_teacher[token] else "student",
            position=int(layout.position[token]),
            length=int(layout.sequence_lengths[token]),
            teacher_token=int(scored.teacher_proposal[token]),
            student_token=int(scored.student_proposal[token]),
            teacher_score=float(expit(scored.teacher_logit[token])),
            student_score=float(expit(scored.student_logit[token])),
            weight=float(weights.weight[token]),
            divergence=float(divergence[token]),
            sampled=sampled,
            student_version=0 if layout.is_teacher[token] else batch.pairs[layout.pair[token]].student_version,
        )
        for token in tokens
    ]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _quantile(histogram: npt.NDArray[np.float64], quantile: float) -> float | None:
    """Weight below which a share of the tokens lies, to the width of a bin (5%)."""
    if not histogram.sum():
        return None
    index = int(np.searchsorted(np.cumsum(histogram), quantile * histogram.sum()))
    return float(np.exp((_LOG_WEIGHT_EDGES[index] + _LOG_WEIGHT_EDGES[index + 1]) / 2))
