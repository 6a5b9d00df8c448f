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
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from jobs.cli import load_config, run_main
from vcrd_ray.config import Config
from vcrd_ray.config.methods import METHODS, with_method
from vcrd_ray.errors import ConfigError
from vcrd_ray.report.tiny_tables import DEFAULT_METHODS, SETTINGS, show_tiny, tiny_table, with_setting
from vcrd_ray.runs.files import write_json

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tables.yaml"


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
    config, flags = load_config(
        "tables tiny", "Methods side by side on the tiny world.", rest, extra=parser, any_key=False
    )
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
