"""A timeline of a run for chrome://tracing or ui.perfetto.dev: tasks of all actors, and what ranks do meanwhile.

Ray records the tasks where RAY_PROFILING is set before its processes start (`cluster.timeline` sets it). It records no
spans in the thread that Ray Train runs a rank in, so ranks keep their own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

VARIABLE = "RAY_PROFILING"
_SPANS = "spans-{rank}.jsonl"


class Spans:
    """What one rank does, a line each in RUN/spans-RANK.jsonl."""

    def __init__(self, run_dir: Path, *, rank: int) -> None:
        self._file = (run_dir / _SPANS.format(rank=rank)).open("a", encoding="utf-8", buffering=1)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Held around something that shall stand in the timeline."""
        started = time.time()
        try:
            yield
        finally:
            self._file.write(json.dumps([name, started, time.time() - started]) + "\n")


def write_timeline(run_dir: Path) -> None:
    """RUN/timeline.json: what Ray has recorded of all processes so far, and the spans of the ranks."""
    events = list(ray.timeline())
    for file in sorted(run_dir.glob(_SPANS.format(rank="*"))):
        for line in file.read_text(encoding="utf-8").splitlines():
            name, started, seconds = json.loads(line)
            events.append(
                {
                    "name": name,
                    "cat": "student",
                    "ph": "X",
                    "ts": started * 1e6,
                    "dur": seconds * 1e6,
                    "pid": "student ranks",
                    "tid": file.stem,
                }
            )
    (run_dir / "timeline.json").write_text(json.dumps(events), encoding="utf-8")
