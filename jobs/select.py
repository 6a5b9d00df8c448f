"""Which rollouts to learn from, told before training: the best response to each prompt, or the best teacher.

    python -m jobs.select --config FILE [--rank-teachers RUN_A RUN_B ...] [--json] [--section.key value ...] [--dry-run]

Leaves RUN/select-SCORE, rollouts that `--distill.rollouts` takes, with selection.json, scores.parquet and summary.json.
Run again after a kill, it scores only the missing blocks. With --rank-teachers, rollouts of several teachers on the same
prompts are scored instead, nothing is selected, and RUN/teacher-ranking/SCORE.json is left.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs.cli import load_config, run_main
from jobs.common import check_models, print_dry_run
from jobs.progress import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError
from vcrd_ray.runs.directory import RunDirectory

if TYPE_CHECKING:
    from vcrd_ray.selection.ranking import TeacherRanking


def sections(config: Config) -> tuple[str, ...]:
    """What a selection depends on."""
    return ("run", "student", *(["teacher"] if config.select.score == "divergence" else []), "select")


def source_directory(config: Config) -> Path:
    """The rollouts that are selected from."""
    return (config.select.rollouts or config.run.dir / "rollouts").resolve()


def check(config: Config, directories: Sequence[Path], *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    from vcrd_ray.selection.scoring import check_rollouts

    score = config.select.score
    use: Literal["generate", "score"] = "generate" if score == "correct" else "score"
    check_models(config, teacher=score == "divergence", judge=False, fetch=fetch, use=use)
    check_rollouts(config, directories, fetch=fetch)


def run(config: Config) -> dict[str, Any]:
    """Select (or finish an interrupted selection) in RUN/select-SCORE; what stands in summary.json."""
    from vcrd_ray.selection.select import select

    source = source_directory(config)
    check(config, [source])
    with RunDirectory(config.run.dir, f"select-{config.select.score}", config, sections=sections(config)) as directory:
        return select(config, directory.path, source, StageProgress)


def run_ranking(config: Config, directories: Sequence[Path]) -> TeacherRanking:
    """Rank the teachers that made several rollouts; RUN/teacher-ranking/SCORE.json."""
    from vcrd_ray.selection.rank import rank

    check(config, directories)
    return rank(config, directories, StageProgress)


def _rollouts_of(path: Path) -> Path:
    return path.resolve() if (path / "manifest.json").is_file() else (path / "rollouts").resolve()


def _check_ranking(config: Config, directories: Sequence[Path]) -> None:
    if len(set(directories)) < 2:
        raise ConfigError("--rank-teachers needs the rollouts of two teachers at least")
    if config.select.score == "divergence":
        raise ConfigError(
            "select.score divergence cannot rank teachers: it needs the log-probabilities of each response's own teacher, and"
            " one teacher is configured; choose lalp, aslec_drop, naturalness, rsr or correct"
        )
    if config.select.keep_share < 1:
        raise ConfigError("select.keep_share has no effect with --rank-teachers, which selects nothing")


def main(argv: list[str]) -> int:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument(
        "--rank-teachers", type=Path, nargs="+", metavar="RUN", help="runs or rollouts of two or more teachers to rank"
    )
    extra.add_argument("--json", action="store_true", help="print the results as JSON, and nothing else")
    config, flags = load_config(
        "select", "Which rollouts to learn from, told before training.", argv, extra=extra, any_key=False
    )
    directories = [_rollouts_of(path) for path in flags.rank_teachers or []]
    if flags.rank_teachers:
        _check_ranking(config, directories)
    if flags.dry_run:
        check(config, directories or [source_directory(config)], fetch=False)
        return print_dry_run(config, sections(config), actors=False)
    from vcrd_ray.selection.rank import RANKING_FOLDER
    from vcrd_ray.selection.tables import show, show_ranking

    if directories:
        ranking = run_ranking(config, directories)
        if flags.json:
            print(json.dumps(ranking.model_dump(mode="json"), indent=2))
        else:
            show_ranking(ranking)
            print((config.run.dir / RANKING_FOLDER / f"{config.select.score}.json").resolve())
        return 0
    result = run(config)
    if flags.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    return 0


if __name__ == "__main__":
    run_main(main)
