"""Tasks of lm-evaluation-harness for a config, and what is kept of each on disk. Knows no model and no Ray.

<folder>/TASK.json                        written last: it says that the task is done
<folder>/SET/{questions.jsonl, answers/, grades/}   of each set of a task, as own benchmarks leave them
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError
from vcrd_ray.evaluation.harness import SUITE_TASKS, HarnessTask, check_tasks
from vcrd_ray.evaluation.results import BenchmarkFigures, merged, summarize, write_results
from vcrd_ray.evaluation.suites import HARNESS_FOLDER, read_graded, write_rows
from vcrd_ray.runs.files import write_json

_BATCH = "batch-00000.jsonl"


def harness_tasks(config: Config, suites: Sequence[str]) -> list[str]:
    """Tasks of the suites, then those of the config.

    Raises:
        ConfigError: the harness is missing, knows no such task, or is asked for what it does not do here.
    """
    for suite in suites:
        if suite not in SUITE_TASKS:
            raise ConfigError(
                f"--backend lm-eval has no suite {suite}: its code tasks have no sandbox and its instruction tasks no judge;"
                " leave --backend out, or name tasks in evaluate.lm_eval.tasks"
            )
    if config.teacher.engine != "hf":
        raise ConfigError("--backend lm-eval runs on transformers: set teacher.engine to hf, or leave --backend out")
    tasks = list(dict.fromkeys([*(t for suite in suites for t in SUITE_TASKS[suite]), *config.evaluate.lm_eval.tasks]))
    if not tasks:
        raise ConfigError("--backend lm-eval has nothing to do: give --suites math, or tasks in evaluate.lm_eval.tasks")
    check_tasks(config.evaluate.lm_eval, tasks)
    return tasks


def missing_tasks(folder: Path, tasks: Sequence[str]) -> list[str]:
    """Those that are not done."""
    return [task for task in tasks if not (folder / f"{task}.json").exists()]


def keep_task(folder: Path, task: str, found: HarnessTask, *, seconds: float) -> None:
    """All files of a task that was done."""
    for rows in found.rows:
        write_rows(folder / rows.name / "questions.jsonl", rows.questions)
        write_rows(folder / rows.name / "answers" / _BATCH, [row.model_dump() for row in rows.answers])
        write_rows(folder / rows.name / "grades" / _BATCH, [row.model_dump() for row in rows.graded])
    # Last, because it says that the task is done.
    metrics = {rows.name: rows.metrics for rows in found.rows if rows.metrics}
    write_json(folder / f"{task}.json", {"seconds": seconds, "metrics": metrics, "results": found.results})


def harness_figures(directory: Path, tasks: Sequence[str], *, confidence: float) -> list[BenchmarkFigures]:
    """Figures of tasks that were kept in DIRECTORY/lm-eval; writes DIRECTORY/figures.json and results.json."""
    folder = directory / HARNESS_FOLDER
    results: dict[str, Any] = {"config": {"backend": "lm-eval"}}
    figures, speeds = [], {}
    for task in tasks:
        kept = json.loads((folder / f"{task}.json").read_text(encoding="utf-8"))
        speeds[task] = {"seconds": kept["seconds"]}
        results = merged(results, kept["results"])
        figures += [
            _set_figures(folder / name, metrics, confidence=confidence) for name, metrics in kept["metrics"].items()
        ]
    write_results(directory, "lm-eval", figures, speeds, results)
    return figures


def _set_figures(folder: Path, metrics: Sequence[str], *, confidence: float) -> BenchmarkFigures:
    return summarize(
        folder.name,
        read_graded(folder / "grades" / _BATCH),
        metrics=metrics,
        samples=1,
        ks=(1,),
        cut_off=0,
        no_room=0,
        confidence=confidence,
    )
