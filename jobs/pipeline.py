"""The whole main job: SFT, rollouts, distillation by one method or several, evaluation, report.

    python -m jobs.pipeline --config FILE [--methods vcrd distillm2 ...] [--calibrate N] [--section.key value ...] [--dry-run]

With --calibrate, the judge's scores on N rollouts are measured (jobs.calibrate) before anything is distilled.
Every stage can be interrupted; the same command goes on where it stopped. Ends with a table and RUN/report.html.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from jobs import distill, evaluate, rollouts, sft
from jobs.cli import load_config, run_main
from jobs.common import model_location, print_dry_run, push_report
from jobs.progress import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.config.methods import METHODS, with_method
from vcrd_ray.data.accuracy import Accuracy
from vcrd_ray.errors import ConfigError
from vcrd_ray.report.live import wait_share
from vcrd_ray.report.summary import show
from vcrd_ray.runs.files import read_jsonl, write_json

T = TypeVar("T")
_DEMO_CALIBRATION = 400
SECTIONS = tuple(dict.fromkeys((*sft.SECTIONS, *rollouts.SECTIONS, *distill.SECTIONS, *evaluate.SECTIONS)))


def check(config: Config, methods: list[str], *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    if not config.sft.skip:
        sft.check(config, fetch=fetch)
    rollouts.check(config, fetch=fetch)
    for method in methods:
        distill.check(with_method(config, method), fetch=fetch)
    if config.evaluate.prompts.has_golds:
        evaluate.check(config, fetch=fetch)


def run(config: Config, methods: list[str], *, calibrated_rollouts: int = 0) -> dict[str, Any]:
    """All stages in order; what stands in summary.json."""
    from actors.cluster import shared_cluster
    from vcrd_ray.report.page import write_report

    wall: dict[str, float] = {}
    results: dict[str, Accuracy] = {}
    waits: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        started, connected_s = time.perf_counter(), cluster.start_s
        value = work()
        wall[stage] = time.perf_counter() - started - (cluster.start_s - connected_s)
        return value

    def evaluated(label: str, model: str) -> None:
        if config.evaluate.prompts.has_golds:
            chosen = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"model": model})})
            results[label] = timed(f"evaluate_{label}", lambda: evaluate.run(chosen, label=label))

    begun = time.perf_counter()
    with shared_cluster(config) as cluster:
        if not config.sft.skip:
            base = timed("sft", lambda: sft.run(config))
            config = config.model_copy(update={"student": config.student.model_copy(update={"path": base})})
        timed("rollouts", lambda: rollouts.run(config))
        judged = any(with_method(config, method).distill.objective.needs_judge for method in methods)
        if calibrated_rollouts and judged:
            timed("calibrate", lambda: _calibrate(config, calibrated_rollouts))
        evaluated("teacher", config.teacher.path)
        evaluated("student" if config.sft.skip else "sft", config.student.path)
        for method in methods:
            chosen = with_method(config, method)
            directory = timed(f"distill_{method}", partial(distill.run, chosen, name=f"distill-{method}"))
            waits[method] = wait_share(read_jsonl(directory / "metrics.jsonl"))
            evaluated(method, model_location(config, f"distill-{method}"))
    wall["cluster_start"] = cluster.start_s
    wall["total"] = time.perf_counter() - begun
    summary = {
        "accuracy": {label: figures.model_dump() for label, figures in results.items()},
        "wall_s": wall,
        "exposed_wait_share": waits,
        "report": str((config.run.dir / "report.html").resolve()),
    }
    write_json(config.run.dir / "summary.json", summary)
    write_report(config.run.dir)
    push_report(config)
    return summary


def _calibrate(config: Config, max_rollouts: int) -> None:
    from vcrd_ray.report.calibrate import measure

    where = distill.rollouts_directory(config)
    measure(config, where, method="isotonic", show_progress=StageProgress, max_rollouts=max_rollouts)


def main(argv: list[str], *, job: str = "pipeline") -> int:
    """All stages, then the table."""
    extra = argparse.ArgumentParser(add_help=False)
    help_ = "side by side (default: vcrd)"
    extra.add_argument("--methods", nargs="+", choices=list(METHODS), default=["vcrd"], help=help_)
    number = _DEMO_CALIBRATION if job == "demo" else 0
    extra.add_argument("--calibrate", type=int, default=number, metavar="N", help="measure the judge on N rollouts")
    config, flags = load_config(job, "The whole main job.", argv, extra=extra, any_key=False)
    if flags.calibrate < 0:
        raise ConfigError(f"--calibrate {flags.calibrate}: must be at least 0")
    if flags.dry_run:
        check(config, flags.methods, fetch=False)
        return print_dry_run(config, SECTIONS, actors=True)
    show(run(config, flags.methods, calibrated_rollouts=flags.calibrate))
    return 0


if __name__ == "__main__":
    run_main(main)
