"""A distillation whose actors are killed at random all the time: the result, what it cost, and memory over time.

Every few seconds one process of the run, a teacher, a judge or a student rank, is killed (SIGKILL). The student must come
out as that of an undisturbed run, bit for bit. Resident memory of every role's processes and the use of the object store
are sampled all along; --plot writes them as a page.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_SAMPLE_S = 2.0
_ROLES = {"EngineActor": "teacher", "JudgeActor": "judge", "RayTrainWorker": "student"}
_FIRST_MINUTES = 3.0
"""Processes grow while they load and fill their caches; growth is measured after that, over as long at least."""


@dataclass
class _Record:
    """What happened, by seconds since the start."""

    kills: list[tuple[float, str]] = field(default_factory=list)
    memory: list[tuple[float, str, int, float]] = field(default_factory=list)
    """(when, role, process, resident MiB)"""
    store: list[tuple[float, float]] = field(default_factory=list)
    """(when, MiB in use)"""
    seconds: float = 0.0
    """How long it took."""


def run(argv: list[str]) -> dict[str, Any]:
    """Kills by role, recovery times, memory growth, and whether the result equals that of an undisturbed run."""
    options = _options(argv)

    from actors.cluster import ray_cluster
    from jobs import distill, rollouts
    from vcrd_ray.config import Config
    from vcrd_ray.runs.files import read_jsonl

    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "run": {"dir": folder},
                "judge": {"type": "value_head", "replicas": 2},
                "teacher": {"replicas": 2},
                "student": {"max_failures": 10},
                "rollouts": {"prompts": {"type": "tiny", "seed": 2, "count": 256}, "sampling": {"max_new_tokens": 64}},
                "distill": {
                    "num_updates": options.updates,
                    "batch_size": 8,
                    "micro_batch_size": 4,
                    "checkpoint_every": 5,
                    "optim": {"lr": 1e-3},
                },
            }
        )
        with ray_cluster(config):
            rollouts.run(config)
            with _recorded(options, kills=False) as undisturbed:
                calm = distill.run(config, name="distill-calm")
            with _recorded(options, kills=True) as record:
                chaos = distill.run(config, name="distill-chaos")
        weights = [d / "adapter" / "adapter_model.safetensors" for d in (calm, chaos)]
        equal = weights[0].read_bytes() == weights[1].read_bytes()
        losses = [[row["loss"] for row in read_jsonl(d / "metrics.jsonl")] for d in (calm, chaos)]
    if options.plot:
        _plot(record, options.plot)
    roles = (*_ROLES.values(), "driver")
    return {
        "updates": options.updates,
        "minutes": round(record.seconds / 60, 1),
        "calm_minutes": round(undisturbed.seconds / 60, 1),
        "kills": dict(Counter(role for _, role in record.kills)),
        "bitwise_equal": equal and losses[0] == losses[1],
        # Of processes that live through a whole run; killed ones are young.
        "growth_mib_an_hour": {role: _growth(undisturbed, role) for role in roles},
        "largest_mib": {role: [_largest(seen, role) for seen in (undisturbed, record)] for role in roles},
        "object_store_mib": {
            "median": round(statistics.median(mib for _, mib in record.store), 1),
            "largest": round(max(mib for _, mib in record.store), 1),
        },
    }


@contextmanager
def _recorded(options: argparse.Namespace, *, kills: bool) -> Iterator[_Record]:
    record, stop, began = _Record(), threading.Event(), time.monotonic()
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
            found += [(role, process) for name, role in _ROLES.items() if f"ray::{name}" in title]
    return found


def _kill(record: _Record, stop: threading.Event, began: float, options: argparse.Namespace) -> None:
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


def _watch(record: _Record, stop: threading.Event, began: float) -> None:
    import psutil
    import ray

    total = ray.cluster_resources()["object_store_memory"]
    while not stop.wait(_SAMPLE_S):
        now = time.monotonic() - began
        for role, process in [*_members(), ("driver", psutil.Process())]:
            with suppress(psutil.Error):
                record.memory.append((now, role, process.pid, process.memory_info().rss / 1024**2))
        record.store.append((now, (total - ray.available_resources().get("object_store_memory", 0.0)) / 1024**2))


def _growth(record: _Record, role: str) -> float | None:
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


def _largest(record: _Record, role: str) -> float:
    """Most that a process of a role held. [MiB]"""
    return round(max(mib for _, owner, _, mib in record.memory if owner == role), 1)


def _plot(record: _Record, path: Path) -> None:
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


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench chaos", description=__doc__)
    parser.add_argument("--updates", type=int, default=600, help="updates of the run, which say how long it takes")
    parser.add_argument("--least-s", type=float, default=20.0, help="shortest time between two kills")
    parser.add_argument("--most-s", type=float, default=60.0, help="longest time between two kills")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed when")
    parser.add_argument("--plot", type=Path, help="page with memory over time")
    parser.add_argument("--record", type=Path, help="JSON with every sample")
    return parser.parse_args(argv)
