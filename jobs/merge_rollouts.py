"""Rollouts of several runs in one directory that jobs.distill reads with --distill.rollouts.

    python -m jobs.merge_rollouts --out DIR DIR1 DIR2 ... [--drop-duplicates]

The runs must share teacher, student, tokenizer, template and sampling; their prompts or seeds differ. Prompts of runs with
different seeds get further samples; other pairs of one question are duplicates, which are refused or dropped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs.cli import run_main
from vcrd_ray.errors import ConfigError


def main(argv: list[str]) -> int:
    """Merge, and say what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.merge_rollouts", description="Rollouts of several runs in one directory."
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="rollouts, in the order they are kept")
    parser.add_argument(
        "--drop-duplicates", action="store_true", help="keep the first of duplicate pairs (else: refuse)"
    )
    arguments = parser.parse_args(argv)
    if len(arguments.directories) < 2:
        raise ConfigError(f"{arguments.directories[0]} alone: give two directories at least")

    from vcrd_ray.data.merge import merge_rollouts

    manifest, num_dropped = merge_rollouts(
        arguments.out, arguments.directories, drop_duplicates=arguments.drop_duplicates
    )
    print(f"{arguments.out}: {manifest.num_pairs} pairs of {manifest.num_prompts} prompts, {num_dropped} dropped")
    return 0


if __name__ == "__main__":
    run_main(main)
