"""A training that is under way: one view of it for a terminal, or as JSON for programs. Computes nothing."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vcrd_ray.report.live import Snapshot


def render(name: str, now: Snapshot | None) -> Group:
    """One view."""
    if now is None:
        return Group(Text(f"{name}: no update yet"))
    table = Table(box=None, show_header=False, pad_edge=False)
    low, middle, high = now.weights
    table.add_row("", ProgressBar(total=max(1, now.num_updates), completed=now.update, width=60))
    for label, value in (
        ("update", f"{now.update}/{now.num_updates}, {now.update_s:.2f} s each, {_duration(now.eta_s)} left"),
        ("loss", f"{now.loss:.4f}"),
        ("weights", f"5% {low:.2f}   median {middle:.2f}   95% {high:.2f}   above 1: {_percent(now.share_above_one)}"),
        ("proposals", f"{_percent(now.agreement)} the same"),
        ("student", f"{now.tokens_per_s:,.0f} tokens/s"),
        ("judge", f"{now.judge_tokens_per_s:,.0f} tokens/s while busy"),
        ("waiting", f"{_percent(now.wait_share)} of the time"),
        ("staleness", f"{now.staleness:.1f} updates"),
    ):
        if "nan" not in value:
            table.add_row(Text(label, style="bold"), value)
    alerts = [Text(f"! {alert}", style="bold red") for alert in now.alerts]
    return Group(Text(name), table, *alerts)


def plain(now: Snapshot | None) -> dict[str, Any] | None:
    """For JSON, which has no numbers that are none."""
    if now is None:
        return None
    return {name: _finite(value) for name, value in asdict(now).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
