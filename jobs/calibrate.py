"""Can the judge be trusted? Its scores on a run's rollouts against final correctness, and maps that calibrate them.

    python -m jobs.calibrate --config FILE [--other FILE ...] [--processbench FILE ...] [--section.key value ...] [--dry-run]

Reads the judge of the config, without its calibration, in this process. Leaves RUN/calibration/calibration.json, which
`judge.calibration` takes, and RUN/calibration/processbench.json. A second call replaces both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.cli import load_config, run_main
from jobs.common import print_dry_run
from jobs.distill import rollouts_directory
from jobs.progress import StageProgress
from jobs.settings import read_sections
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError

if TYPE_CHECKING:
    from vcrd_ray.evaluation.processbench import BenchFigures
    from vcrd_ray.report.calibration_figures import CalibrationReport

SECTIONS = ("run", "student", "judge")


def _flags() -> argparse.ArgumentParser:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--method", choices=["isotonic", "temperature"], default="isotonic", help="kind of map")
    for name, said in (
        ("--other", "YAML files with a judge to compare with"),
        ("--processbench", "ProcessBench files (JSON Lines)"),
    ):
        extra.add_argument(name, type=Path, nargs="+", default=[], metavar="FILE", help=said)
    for name, said in (
        ("--max-rollouts", "responses that are judged at most"),
        ("--max-items", "items of each ProcessBench file at most"),
    ):
        extra.add_argument(name, type=int, metavar="N", help=said)
    extra.add_argument("--threshold", type=float, default=0.5, help="score below which a step is wrong (default: 0.5)")
    extra.add_argument("--json", action="store_true", help="print the results as JSON, and nothing else")
    return extra


def _check_flags(config: Config, flags: argparse.Namespace) -> None:
    for name in ("max_rollouts", "max_items"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if not 0 < flags.threshold < 1:
        raise ConfigError(f"--threshold {flags.threshold}: must lie between 0 and 1")
    if flags.max_items is not None and not flags.processbench:
        raise ConfigError("--max-items has no effect without --processbench")
    if flags.other and not rollouts_directory(config).is_dir():
        raise ConfigError(f"--other compares judges on rollouts, and there are none in {rollouts_directory(config)}")


def main(argv: list[str]) -> int:
    config, flags = load_config("calibrate", "What the judge's scores are worth.", argv, extra=_flags(), any_key=False)
    _check_flags(config, flags)
    others = [(file.stem, _other(file)) for file in flags.other]
    from vcrd_ray.report.calibrate import FOLDER, check_sources, load, measure, run_processbench
    from vcrd_ray.report.calibration_tables import as_json, show, show_processbench

    rollouts = rollouts_directory(config)
    compared = [other for _, other in others]
    check_sources(config, rollouts, compared, flags.processbench, fetch=not flags.dry_run)
    if flags.dry_run:
        return print_dry_run(config, SECTIONS, actors=False)
    if config.judge.calibration is not None:
        print("judge.calibration is set; what is measured here is the judge without it", file=sys.stderr)
    judge = load(config)
    report: CalibrationReport | None = None
    results: list[BenchFigures] = []
    if rollouts.is_dir():
        report = measure(
            config,
            rollouts,
            method=flags.method,
            show_progress=StageProgress,
            judge=judge,
            max_rollouts=flags.max_rollouts,
            others=others,
        )
    else:
        print(f"{rollouts}: no rollouts, so ProcessBench alone is run", file=sys.stderr)
    if flags.processbench:
        results = run_processbench(
            config,
            judge,
            flags.processbench,
            threshold=flags.threshold,
            max_items=flags.max_items,
            show_progress=StageProgress,
        )
    if flags.json:
        print(as_json(report, results))
        return 0
    if report:
        show(report)
    if results:
        show_processbench(results)
    print((config.run.dir / FOLDER).resolve())
    return 0


def _other(file: Path) -> Config:
    config, _ = load_config("calibrate", "", ["--config", str(file)])
    if "judge" not in read_sections(file):
        raise ConfigError(f"--other {file}: no judge: section in it")
    return config


if __name__ == "__main__":
    run_main(main)
