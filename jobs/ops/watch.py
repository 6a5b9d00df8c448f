"""A training that is under way, live in the terminal.

RUN is a run directory (the newest training in it), a training's folder, or either in storage (s3://...). Ends with the
training. With --once one view is printed; with --json as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.live import Live

from vcrd_ray.errors import RunDirectoryError
from vcrd_ray.report.live import Snapshot, snapshot
from vcrd_ray.report.live_view import plain, render
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
            print(json.dumps(plain(now)), flush=True)
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
