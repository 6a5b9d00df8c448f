"""What `jobs.bench chaos` does to a run and sees of it: kills, memory of all processes, the object store; and their page."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_SAMPLE_S = 2.0
ROLES = {"EngineActor": "teacher", "JudgeActor": "judge", "RayTrainWorker": "student"}
_FIRST_MINUTES = 3.0
"""Processes grow while they load and fill their caches; growth is measured after that, over as long at least."""


@dataclass
class Record:
    """What happened, by seconds since the start."""

    kills: list[tuple[float, str]] = field(default_factory=list)
    memory: list[tuple[float, str, int, float]] = field(default_factory=list)
    """(when, role, process, resident MiB)"""
    store: list[tuple[float, float]] = field(default_factory=list)
    """(when, MiB in use)"""
    seconds: float = 0.0
    """How long it took."""


@contextmanager
def recorded(options: argparse.Namespace, *, kills: bool) -> Iterator[Record]:
    """Around a run: sample its processes, and kill some where asked to."""
    record, stop, began = Record(), threading.Event(), time.monotonic()
    threads = [threading.Thread(target=_watch, args=(record, stop, began))]
    if kills:
        threads.append(threading.Thread(target=_kill, args=(record, stop, began, options)))
    for thread in threads:
        thread.start()
    try:
        yield record
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        record.seconds = time.monotonic() - began
        if kills and options.record:
            # Kept even where the run failed.
            options.record.write_text(json.dumps(asdict(record)))


def _members() -> list[tuple[str, Any]]:
    """(role, process) of every actor below this process."""
    import psutil

    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            found += [(role, process) for name, role in ROLES.items() if f"ray::{name}" in title]
    return found


def _kill(record: Record, stop: threading.Event, began: float, options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    while not stop.wait(rng.uniform(options.least_s, options.most_s)):
        members = _members()
        if not members:
            continue
        # A role first: there are more judges than students.
        role = rng.choice(sorted({role for role, _ in members}))
        process = rng.choice([p for r, p in members if r == role])
        with suppress(Exception):  # gone by itself
            process.kill()
            record.kills.append((time.monotonic() - began, role))


def _watch(record: Record, stop: threading.Event, began: float) -> None:
    import psutil
    import ray

    total = ray.cluster_resources()["object_store_memory"]
    while not stop.wait(_SAMPLE_S):
        now = time.monotonic() - began
        for role, process in [*_members(), ("driver", psutil.Process())]:
            with suppress(psutil.Error):
                record.memory.append((now, role, process.pid, process.memory_info().rss / 1024**2))
        record.store.append((now, (total - ray.available_resources().get("object_store_memory", 0.0)) / 1024**2))


def growth(record: Record, role: str) -> float | None:
    """Median slope of memory of a role's processes after their first minutes; None: they lived too briefly. [MiB an hour]"""
    processes: dict[int, list[tuple[float, float]]] = {}
    for when, owner, process, mib in record.memory:
        if owner == role:
            processes.setdefault(process, []).append((when, mib))
    slopes = []
    for seen in processes.values():
        late = [(when, mib) for when, mib in seen if when - seen[0][0] > 60 * _FIRST_MINUTES]
        if late and late[-1][0] - late[0][0] > 60 * _FIRST_MINUTES:
            slopes.append(statistics.linear_regression(*zip(*late, strict=True)).slope * 3600)
    return round(statistics.median(slopes), 1) if slopes else None


def largest(record: Record, role: str) -> float:
    """Most that a process of a role held. [MiB]"""
    return round(max(mib for _, owner, _, mib in record.memory if owner == role), 1)


def write_plot(record: Record, path: Path) -> None:
    """Memory over time, with a line for each kill."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=2, shared_xaxes=True, row_heights=[0.75, 0.25], vertical_spacing=0.05)
    colours = {"student": "#d62728", "teacher": "#1f77b4", "judge": "#2ca02c", "driver": "#7f7f7f"}
    shown: set[str] = set()
    for process in dict.fromkeys(pid for _, _, pid, _ in record.memory):
        rows = [(when / 60, role, mib) for when, role, pid, mib in record.memory if pid == process]
        role = rows[0][1]
        figure.add_scatter(
            x=[r[0] for r in rows],
            y=[r[2] for r in rows],
            mode="lines",
            name=role,
            legendgroup=role,
            showlegend=role not in shown,
            line={"color": colours[role], "width": 1.5},
            row=1,
            col=1,
        )
        shown.add(role)
    figure.add_scatter(
        x=[when / 60 for when, _ in record.store],
        y=[mib for _, mib in record.store],
        mode="lines",
        name="object store",
        line={"color": "#9467bd"},
        row=2,
        col=1,
    )
    for when, role in record.kills:
        figure.add_vline(x=when / 60, line={"color": colours[role], "width": 1, "dash": "dot"})
    figure.update_yaxes(title="resident MiB", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="store MiB", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title="minutes; dotted: a process is killed", row=2, col=1)
    figure.update_layout(template="plotly_white", margin={"l": 60, "r": 20, "t": 20, "b": 50})
    figure.write_html(path, include_plotlyjs="inline", config={"displayModeBar": False})
