"""lm-evaluation-harness on Ray: an actor answers and grades one task after the other.

<folder>/lm-eval/TASK.json   what the harness said of a finished task; beside it questions, answers and verdicts of its sets
<folder>/results.json, figures.json   as with own benchmarks
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.progress import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.evaluation.suites import HARNESS_FOLDER, check_backend

if TYPE_CHECKING:
    from vcrd_ray.evaluation.harness import HarnessTask
    from vcrd_ray.evaluation.results import BenchmarkFigures


def run_harness(config: Config, model: str, suites: Sequence[str], folder: Path) -> list[BenchmarkFigures]:
    """Evaluate a checkpoint with lm-evaluation-harness; finished tasks in `folder` are not repeated."""
    import ray

    from actors.answers import harness_pool
    from actors.cluster import ray_cluster
    from vcrd_ray.evaluation.harness_files import harness_figures, harness_tasks, keep_task, missing_tasks

    tasks = harness_tasks(config, suites)
    check_backend(folder, "lm-eval")
    missing = missing_tasks(folder / HARNESS_FOLDER, tasks)
    if missing:
        with ray_cluster(config), StageProgress("lm-eval", len(missing), "tasks") as progress:
            pool = harness_pool(config, model)
            try:
                pool.wait_ready(config.cluster.start_timeout_s)
                for task in missing:
                    started = time.perf_counter()
                    found: HarnessTask = ray.get(pool.pick().evaluate.remote(task))
                    keep_task(folder / HARNESS_FOLDER, task, found, seconds=time.perf_counter() - started)
                    progress.advance(1, task)
            finally:
                pool.stop()
    return harness_figures(folder, tasks, confidence=config.evaluate.confidence)
