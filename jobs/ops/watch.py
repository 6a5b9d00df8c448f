"""A training that is under way, live in the terminal.

RUN is a run directory (the newest training in it), a training's folder, or either in storage (s3://...). Ends with the
training. With --once one view is printed; with --json as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vcrd_ray.errors import RunDirectoryError
from vcrd_ray.report.live import Snapshot, snapshot
from vcrd_ray.runs.files import parse_jsonl
from vcrd_ray.runs.storage import Store, is_remote

_METRICS, _PROGRESS, _DONE = "metrics.jsonl", "progress.json", "training.json"


def find_training(run: str) -> Store:
    """The folder of the newest training in a run, or the training itself.

    Raises:
        RunDirectoryError: there is none.
    """
    store = Store(run if is_remote(run) else Path(run).resolve().as_uri())
    # pyarrow's description of a file ends with when it was written.
    found = {
        name: state for name, state in store.files().items() if name.count("/") < 2 and Path(name).name == _METRICS
    }
    if not found:
        raise RunDirectoryError(
            f"{run}: no training in it (no {_METRICS} in it or in a folder of it); has its first update been done?"
        )
    newest = _METRICS if _METRICS in found else max(found, key=lambda name: int(found[name].split()[1]))
    return store.within(newest.rpartition("/")[0]) if "/" in newest else store


def views(folder: Store, *, every_s: float) -> Iterator[tuple[Snapshot | None, bool]]:
    """The training now, and whether it has ended, again and again until it has."""
    while True:
        ended = folder.read(_DONE) is not None
        progress = json.loads(folder.read(_PROGRESS) or "{}")
        rows = parse_jsonl(folder.read(_METRICS) or "")
        yield snapshot(rows, progress.get("num_updates", 0), now=time.time()), ended
        if ended:
            return
        time.sleep(every_s)


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


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.watch", description="A training that is under way, live.")
    parser.add_argument("run", help="run directory, a training's folder, or either in storage")
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS", help="between two looks (default: 2)")
    parser.add_argument("--once", action="store_true", help="print one view and stop")
    parser.add_argument("--json", action="store_true", help="as JSON, a line a view")
    flags = parser.parse_args(argv)
    folder = find_training(flags.run)
    name = folder.name().removeprefix("file://")
    if flags.json:
        for now, _ in views(folder, every_s=flags.every):
            print(json.dumps(_plain(now)), flush=True)
            if flags.once:
                break
        return 0
    console = Console()
    if flags.once or not console.is_terminal:
        for now, _ in views(folder, every_s=flags.every):
            console.print(render(name, now))
            if flags.once:
                break
        return 0
    with Live(console=console, auto_refresh=False) as live:
        for now, ended in views(folder, every_s=flags.every):
            live.update(render(name, now), refresh=True)
            if ended:
                print("the training has ended", file=sys.stderr)
    return 0


def _plain(now: Snapshot | None) -> dict[str, Any] | None:
    if now is None:
        return None
    shown = asdict(now)
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in shown.items()}
