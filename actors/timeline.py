"""A timeline of a run for chrome://tracing or ui.perfetto.dev: tasks of all actors, and what ranks do meanwhile.

Ray records them where RAY_PROFILING is set before its processes start (`cluster.timeline` sets it).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import ray
from ray._private.profiling import profile  # Ray has no public name for spans of one's own

VARIABLE = "RAY_PROFILING"


def span(name: str) -> AbstractContextManager[object]:
    """Held around something that shall stand in the timeline."""
    held: AbstractContextManager[object] = profile(name)
    return held


def write_timeline(path: Path) -> None:
    """What Ray has recorded of all processes so far."""
    ray.timeline(filename=str(path))
