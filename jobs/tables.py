"""Methods side by side: on the tiny world with paired seeds, or the rows of the paper's tables by name.

    python -m jobs.tables tiny [--seeds N] [--methods M ...] [--settings S ...] [--workers W] [--section.key value ...]
    python -m jobs.tables paper [--table T]

`tiny` trains every (setting, seed, method) in processes of this machine, without Ray, and prints a table a setting: mean over
seeds with its 95% interval, paired difference to VCRD with its p-value, seconds an update. All methods of a seed share one
fine-tuned student, one set of rollouts and one data order. Each result is a file under RUN/tables, so that the same command
goes on where it stopped. `paper` prints each row's figure as published and the command that runs it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.cli import load_config, run_main
from vcrd_ray.config import Config
from vcrd_ray.config.methods import METHODS, with_method
from vcrd_ray.errors import ConfigError
from vcrd_ray.runs.files import write_json

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tables.yaml"
REFERENCE = "vcrd"
DEFAULT_METHODS = (
    *(
        "kd",
        "seqkd",
        "gkd",
        "distillm",
        "distillm2",
        "abkd",
        "uniform",
        "lv_skl",
        "lv_srkl",
        "amp_off",
        "student_score",
    ),
    *("difference", "difference_shifted", "vcrd", "vcrd_prob"),
)

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "weak_teacher": {"teacher": {"path": "tiny:teacher-weak"}},
    "hot_teacher": {"rollouts": {"sampling": {"temperature": 1.2, "top_p": 1.0}}},
    "weak_hot_teacher": {
        "teacher": {"path": "tiny:teacher-weak"},
        "rollouts": {"sampling": {"temperature": 1.2, "top_p": 1.0}},
    },
    "oracle": {"judge": {"type": "oracle"}},
    "soft_oracle": {"judge": {"type": "oracle", "confidence": 0.7}},
    "weak_teacher_oracle": {"teacher": {"path": "tiny:teacher-weak"}, "judge": {"type": "oracle"}},
    "one_way": {"world": {"num_ways": 1}},
    "small_adapter": {"distill": {"lora": {"r": 2, "alpha": 16, "dropout": 0.0}}},
    "full_fine_tuning": {"distill": {"lora": None, "optim": {"lr": 1.0e-3}}},
    "long": {"distill": {"num_updates": 300}},
    "refresh_epoch": {"rollouts": {"refresh": {"every": "epoch", "ahead": 1}}},
    "refresh_10": {"rollouts": {"refresh": {"every": 10, "ahead": 1}}},
    "refresh_1_ahead_4": {"rollouts": {"refresh": {"every": 1, "ahead": 4}}},
    "on_policy": {"rollouts": {"refresh": {"every": 1, "ahead": 0}}},
}
"""Knobs of the tiny world: who teaches and how hot, who judges, how many ways a step may be said, what the student can
change, how long it learns, how fresh its own responses are. The uniform weights are the judge that says nothing."""


def with_setting(config: Config, name: str) -> Config:
    """The config with one setting's knobs turned."""
    return Config.model_validate(_merged(config.model_dump(round_trip=True), SETTINGS[name]))


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        # Another type of a section has other keys: it replaces the section.
        nested = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("type", old.get("type")) == old.get("type")
        )
        merged[key] = _merged(old, value) if nested and isinstance(old, dict) else value
    return merged


def run_tiny(config: Config, *, settings: Sequence[str], methods: Sequence[str], seeds: int, workers: int) -> Path:
    """Train all cells in `workers` processes; the directory of the results."""
    from vcrd_ray.report.trial import run_trial

    root = config.run.dir / "tables"
    cells = [(setting, seed) for seed in range(seeds) for setting in settings]
    work: list[Callable[[], None]] = [
        partial(run_trial, with_setting(config, setting), methods, seed=seed, folder=root / setting / f"seed-{seed}")
        for setting, seed in cells
    ]
    # Fresh processes: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(cell): name for cell, name in zip(work, cells, strict=True)}
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            setting, seed = waiting[future]
            print(f"{done}/{len(cells)} cells: {setting}, seed {seed}", file=sys.stderr, flush=True)
    return root


def tiny_table(root: Path, setting: str, methods: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """The rows of one setting's table, best first."""
    from dataclasses import asdict

    from vcrd_ray.report.comparison import compare
    from vcrd_ray.report.trial import FINE_TUNED

    values: dict[str, dict[int, float]] = {}
    seconds: dict[str, list[float]] = {}
    for method in (FINE_TUNED, *methods):
        for seed in range(seeds):
            figures = json.loads((root / setting / f"seed-{seed}" / f"{method}.json").read_text())
            values.setdefault(method, {})[seed] = figures["accuracy"]
            seconds.setdefault(method, []).append(figures.get("update_s", float("nan")))
    reference = REFERENCE if REFERENCE in methods else methods[0]
    rows = [
        {**asdict(row), "update_s": sorted(seconds[row.method])[len(seconds[row.method]) // 2]}
        for row in compare(values, reference=reference)
    ]
    return sorted(rows, key=lambda row: -row["mean"])


def show_tiny(setting: str, rows: list[dict[str, Any]]) -> None:
    """One setting's table."""
    table = Table(title=f"tiny world, {setting}: greedy pass@1 over {rows[0]['num_seeds']} seeds")
    for heading in ("method", "mean", "95% interval", "to VCRD", "95% interval", "p", "s/update"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            f"{100 * row['mean']:.1f}",
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['difference_low']:+.1f} to {100 * row['difference_high']:+.1f}",
            f"{row['p_value']:.3f}",
            f"{row['update_s']:.2f}",
        )
    Console(width=110).print(table)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 (default: 5)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(DEFAULT_METHODS))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["default"])
    parser.add_argument("--workers", type=int, default=1, help="processes side by side (default: 1)")
    if not argv or argv[0] not in ("tiny", "paper"):
        raise ConfigError("say which tables: python -m jobs.tables tiny, or python -m jobs.tables paper")
    if argv[0] == "paper":
        from jobs.paper import main as paper

        return paper(argv[1:])
    rest = argv[1:] if "--config" in argv else ["--config", str(DEFAULT_CONFIG), *argv[1:]]
    config, flags = load_config("tables tiny", "Methods side by side on the tiny world.", rest, extra=parser)
    for setting in flags.settings:
        for method in flags.methods:
            with_method(with_setting(config, setting), method)
    if flags.dry_run:
        print(f"{len(flags.settings) * flags.seeds} cells of {len(flags.methods)} methods")
        return 0
    root = run_tiny(config, settings=flags.settings, methods=flags.methods, seeds=flags.seeds, workers=flags.workers)
    tables = {s: tiny_table(root, s, flags.methods, flags.seeds) for s in flags.settings}
    for setting, rows in tables.items():
        show_tiny(setting, rows)
    write_json(root / "tables.json", tables)
    print(root / "tables.json")
    return 0


if __name__ == "__main__":
    run_main(main)
