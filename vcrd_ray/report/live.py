"""What a person wants to know of a training that is under way, from the metrics that it writes. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_RECENT = 20
"""Updates that rates and alerts are taken over."""
_STALL_FACTOR = 5.0
_STALL_S = 30.0
_MUCH_WAITING = 0.3
_MUCH_CLIPPING = 0.2
_MUCH_SATURATION = 0.9


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A training at one moment. Rates are medians over its last updates; NaN is what it has no figure of."""

    update: int
    """Updates done."""
    num_updates: int
    update_s: float
    eta_s: float
    tokens_per_s: float
    """Of prompts and responses that the student went over."""
    judge_tokens_per_s: float
    """Of the judge's own busy seconds, summed over replicas."""
    wait_share: float
    """Of the update time that ranks waited for teacher, judge or new responses."""
    loss: float
    weights: tuple[float, float, float]
    """5%, 50% and 95% quantile of the judged rows' weights in the last update."""
    share_above_one: float
    agreement: float
    """Of the two proposals."""
    staleness: float
    """Updates between the student that wrote a response and the one that learns from it."""
    alerts: tuple[str, ...]


def snapshot(rows: Sequence[Mapping[str, float]], num_updates: int, *, now: float) -> Snapshot | None:
    """The state after these rows of metrics.jsonl; None before the first.

    Args:
        now: seconds since the epoch.
    """
    if not rows:
        return None
    last, recent = rows[-1], rows[-_RECENT:]
    done = int(last["update"]) + 1
    update_s = statistics.median(row["time/update_s"] for row in recent)
    spent = sum(row["time/update_s"] for row in recent)
    return Snapshot(
        update=done,
        num_updates=num_updates,
        update_s=update_s,
        eta_s=(num_updates - done) * update_s,
        tokens_per_s=_ratio(sum(row.get("tokens", 0.0) for row in recent), spent),
        judge_tokens_per_s=_ratio(_sum(recent, "judge/tokens"), _sum(recent, "time/judge_s")),
        wait_share=wait_share(recent),
        loss=last["loss"],
        weights=tuple(last.get(f"weights/p{q}", math.nan) for q in ("05", "50", "95")),  # type: ignore[arg-type]
        share_above_one=last.get("weights/share_above_one_judged", math.nan),
        agreement=last.get("proposals/agreement", math.nan),
        staleness=last.get("rollouts/staleness", math.nan),
        alerts=tuple(_alerts(recent, update_s, now=now, finished=done >= num_updates)),
    )


def _alerts(recent: Sequence[Mapping[str, float]], update_s: float, *, now: float, finished: bool) -> list[str]:
    last, found = recent[-1], list[str]()
    silent = now - last["time"]
    if not finished and silent > max(_STALL_S, _STALL_FACTOR * update_s):
        found.append(
            f"no update for {silent:.0f} s (usually {update_s:.1f} s): the group may be restarting; see log.txt of the run"
        )
    for name in ("loss", "grad_norm"):
        if not math.isfinite(last.get(name, 0.0)):
            found.append(
                f"{name} is {last[name]}: lower the learning rate, or look at the last decisions in the report"
            )
    judged = _sum(recent, "judge/judged_rows")
    for name, text in (
        ("judge/invalid_rows", "judged rows had no usable score and got weight 1"),
        ("judge/set_aside_rows", "rows were not judged because judges died of them"),
        ("judge/replica_deaths", "deaths of judge replicas were seen by ranks"),
    ):
        count = _sum(recent, name)
        if count:
            found.append(f"{count:.0f} {text} in the last {len(recent)} updates")
    waited = wait_share(recent)
    if waited > _MUCH_WAITING:
        slowest = max(("teacher", "judge", "rollouts"), key=lambda role: _sum(recent, f"wait/{role}_s"))
        found.append(
            f"{100 * waited:.0f}% of the time goes into waiting, most of it for the {slowest}: give it replicas"
        )
    if last.get("weights/clip_rate", 0.0) > _MUCH_CLIPPING:
        found.append(
            f"{100 * last['weights/clip_rate']:.0f}% of the weights are clipped: the bounds decide, not the judge"
        )
    if judged and last.get("judge/saturation", 0.0) > _MUCH_SATURATION:
        found.append("the judge is nearly certain of everything: jobs.calibrate says whether it can be trusted")
    return found


def wait_share(rows: Sequence[Mapping[str, float]]) -> float:
    """Share of the update time that ranks stood waiting for teacher, judge or new responses."""
    waited = sum(_sum(rows, f"wait/{role}_s") for role in ("teacher", "judge", "rollouts"))
    return _ratio(waited, sum(row["time/update_s"] for row in rows))


def _sum(rows: Sequence[Mapping[str, float]], name: str) -> float:
    return sum(row.get(name, 0.0) for row in rows)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
