"""Which rollouts to learn from, told before training: the best response to each prompt, or the best teacher.

    python -m jobs.select --config FILE [--rank-teachers RUN_A RUN_B ...] [--json] [--section.key value ...] [--dry-run]

Leaves RUN/select-SCORE, rollouts that `--distill.rollouts` takes, with selection.json, scores.parquet and summary.json.
Run again after a kill, it scores only the missing blocks. With --rank-teachers, rollouts of several teachers on the same
prompts are scored instead, nothing is selected, and RUN/teacher-ranking/SCORE.json is left.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli import load_config, run_main
from jobs.common import StageProgress, check_models, print_dry_run
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.runs.directory import RunDirectory, versions
from vcrd_ray.runs.files import write_json

if TYPE_CHECKING:
    from vcrd_ray.data.problems import Reject
    from vcrd_ray.selection.candidates import Candidate
    from vcrd_ray.selection.choose import Scored
    from vcrd_ray.selection.ranking import TeacherRanking
    from vcrd_ray.selection.scores import ResponseScore
    from vcrd_ray.selection.scoring import Scoring

RANKING_FOLDER = "teacher-ranking"


def sections(config: Config) -> tuple[str, ...]:
    """What a selection depends on."""
    return ("run", "student", *(["teacher"] if config.select.score == "divergence" else []), "select")


def source_directory(config: Config) -> Path:
    """The rollouts that are selected from."""
    return (config.select.rollouts or config.run.dir / "rollouts").resolve()


def check(config: Config, directories: Sequence[Path], *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    from vcrd_ray.data.rollouts import check_manifest, read_manifest
    from vcrd_ray.models.checkpoint_files import (
        load_tokenizer,
        model_fingerprint,
        must_be_fetched,
        resolve_model,
        tokenizer_fingerprint,
    )

    divergence = config.select.score == "divergence"
    check_models(config, teacher=divergence, judge=False, fetch=fetch)
    manifests = {directory: read_manifest(directory) for directory in directories}
    if fetch or not must_be_fetched(config.student.path):
        tokenizer = tokenizer_fingerprint(load_tokenizer(resolve_model(config.student.path)))
        for directory, manifest in manifests.items():
            check_manifest(directory, teacher=manifest.teacher, tokenizer=tokenizer)
            if divergence and (fetch or not must_be_fetched(config.teacher.path)):
                # What another teacher finds likely says nothing of this one's steps.
                teacher = model_fingerprint(resolve_model(config.teacher.path))
                check_manifest(directory, teacher=teacher, tokenizer=tokenizer)


def run(config: Config) -> dict[str, Any]:
    """Select (or finish an interrupted selection) in RUN/select-SCORE; what stands in summary.json."""
    from vcrd_ray.data.problems import write_rejects
    from vcrd_ray.data.rollouts import read_manifest
    from vcrd_ray.models.checkpoint_files import model_fingerprint, resolve_model
    from vcrd_ray.selection.choose import Selection, choose, open_selection, write_scores, write_selected
    from vcrd_ray.selection.scores import LOWER_IS_BETTER
    from vcrd_ray.selection.scoring import Scoring

    section, source = config.select, source_directory(config)
    check(config, [source])
    models = section.score != "correct"
    selection = Selection(
        source=str(source),
        source_manifest=read_manifest(source),
        student=model_fingerprint(resolve_model(config.student.path)) if models else None,
        teacher=model_fingerprint(resolve_model(config.teacher.path)) if section.score == "divergence" else None,
        settings=section,
        max_length=config.distill.max_length,
    )
    with RunDirectory(config.run.dir, f"select-{section.score}", config, sections=sections(config)) as directory:
        open_selection(directory.path, selection)
        summary = directory.path / "summary.json"
        if summary.exists():
            done: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
            return done
        started = time.perf_counter()
        scoring = Scoring(config)
        candidates, rejects = scoring.candidates(source)
        _warn(rejects)
        write_rejects(directory.path / "rejects.jsonl", rejects)
        responses = _scored(directory.path / "scores", scoring, candidates)
        choice = choose(
            responses,
            lower_is_better=section.score in LOWER_IS_BETTER,
            require_correct=section.require_correct,
            keep_share=section.keep_share,
        )
        if not choice.kept:
            raise DataError(
                f"{source}: nothing is left of {choice.num_prompts} prompts: {choice.num_incorrect} have no response with the"
                f" gold answer, {choice.num_unscored} none with a score; set select.require_correct false, or choose another"
                " select.score"
            )
        write_scores(directory.path / "scores.parquet", responses, kept=choice.kept)
        manifest = write_selected(directory.path, selection, responses, choice.kept)
        found = [r.score for r in responses if r.score is not None]
        kept = [responses[i] for i in choice.kept]
        result = {
            "directory": str(directory.path),
            "source": str(source),
            "score": section.score,
            "side": section.side,
            "selected": manifest.prompts,
            "prompts": choice.num_prompts,
            "responses": len(responses),
            "unusable_responses": len(rejects),
            "unscored_responses": len(responses) - len(found),
            "responses_without_gold_answer": sum(r.correct is None for r in responses),
            "kept": len(kept),
            "prompts_without_correct": choice.num_incorrect,
            "prompts_without_score": choice.num_unscored,
            "prompts_below_share": choice.num_below_share,
            "mean_score": sum(found) / len(found),
            "mean_score_of_kept": sum(r.score or 0.0 for r in kept) / len(kept),
            "share_correct": _share_correct(responses),
            "share_correct_of_kept": _share_correct(kept),
            "tokens_read": scoring.num_tokens,
            "seconds": time.perf_counter() - started,
            "made_with": versions(),
        }
        write_json(summary, result)
        shutil.rmtree(directory.path / "scores", ignore_errors=True)
        return result


def _scored(folder: Path, scoring: Scoring, candidates: Sequence[Candidate]) -> list[Scored]:
    """Every response with its score; a block's are kept in a file of their own, which a second call reads."""
    from vcrd_ray.selection.choose import Scored, read_scores, write_scores

    folder.mkdir(exist_ok=True)
    responses: list[Scored] = []
    with StageProgress("select", len(candidates), "responses") as progress:
        for block, group in groupby(candidates, key=lambda c: c.block):
            path, members = folder / f"block-{block:05d}.parquet", list(group)
            if path.exists():
                progress.advance(len(members))
            else:
                scores = scoring.scores(members, progress.advance)
                rows = [
                    Scored(
                        prompt_id=c.prompt_id,
                        sample=c.sample,
                        block=c.block,
                        row=c.row,
                        num_tokens=len(c.response_ids),
                        num_steps=len(c.steps),
                        correct=c.correct,
                        score=None if score is None else score.value,
                    )
                    for c, score in zip(members, scores, strict=True)
                ]
                write_scores(path, rows)
            responses += read_scores(path)
    return responses


def _warn(rejects: Sequence[Reject]) -> None:
    if rejects:
        print(f"{len(rejects)} responses are left out; the first: {rejects[0].reason}", file=sys.stderr)


def _share_correct(responses: Sequence[Scored]) -> float | None:
    known = [r.correct for r in responses if r.correct is not None]
    return sum(known) / len(known) if known else None


def run_ranking(config: Config, directories: Sequence[Path]) -> TeacherRanking:
    """Rank the teachers that made several rollouts; RUN/teacher-ranking/SCORE.json."""
    from vcrd_ray.data.rollouts import read_manifest
    from vcrd_ray.selection.ranking import rank_teachers
    from vcrd_ray.selection.scoring import Scoring

    check(config, directories)
    names = [d.parent.name if d.name == "rollouts" else d.name for d in directories]
    if len(set(names)) < len(names):
        names = [str(d) for d in directories]
    scoring = Scoring(config)
    responses: dict[str, list[Candidate]] = {}
    for name, directory in zip(names, directories, strict=True):
        responses[name], rejects = scoring.candidates(directory)
        _warn(rejects)
    if config.select.require_correct:
        responses = {name: [c for c in found if c.correct] for name, found in responses.items()}
    _check_same_prompts(responses)
    found: dict[str, dict[str, list[ResponseScore]]] = {name: {} for name in names}
    with StageProgress("rank teachers", sum(map(len, responses.values())), "responses") as progress:
        for name, candidates in responses.items():
            for candidate, score in zip(candidates, scoring.scores(candidates, progress.advance), strict=True):
                if score is not None:
                    found[name].setdefault(candidate.prompt_id, []).append(score)
    ranking = rank_teachers(found, score=config.select.score, seed=config.run.seed)
    folder = config.run.dir / RANKING_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "rollouts": {name: str(d) for name, d in zip(names, directories, strict=True)},
        "fingerprints": {name: read_manifest(d).teacher for name, d in zip(names, directories, strict=True)},
        "settings": config.select.model_dump(mode="json"),
        "student": config.student.path,
        "made_with": versions(),
    }
    write_json(folder / f"{config.select.score}.json", {**ranking.model_dump(mode="json"), **facts})
    return ranking


def _check_same_prompts(responses: dict[str, list[Candidate]]) -> None:
    first: dict[str, tuple[str, Candidate]] = {}
    for name, candidates in responses.items():
        for candidate in candidates:
            owner, other = first.setdefault(candidate.prompt_id, (name, candidate))
            if candidate.prompt_ids.tolist() != other.prompt_ids.tolist():
                raise DataError(
                    f"prompt {candidate.prompt_id!r} of {name} is another one than that of {owner}: the rollouts were made on"
                    " different problems or with different chat templates; make them with the same rollouts.prompts"
                )


def show(result: dict[str, Any]) -> None:
    """Counts of a selection."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"best {result['side']} responses by {result['score']}")
    for heading in ("", "all", "kept"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("prompts", f"{result['prompts']:,}", f"{result['kept']:,}")
    table.add_row("responses", f"{result['responses']:,}", f"{result['kept']:,}")
    table.add_row(f"mean {result['score']}", f"{result['mean_score']:.4f}", f"{result['mean_score_of_kept']:.4f}")
    shares = [result[name] for name in ("share_correct", "share_correct_of_kept")]
    table.add_row("right answers", *("-" if s is None else f"{100 * s:.1f}%" for s in shares))
    Console(width=100).print(table)
    for count, what in (
        (result["unusable_responses"], "responses are unusable; see rejects.jsonl"),
        (result["unscored_responses"], "responses have no score: too short for it, or without a gold answer"),
        (result["prompts_without_correct"], "prompts have no response with the gold answer and are left out"),
        (result["prompts_without_score"], "prompts have no response with a score and are left out"),
        (result["prompts_below_share"], "prompts are below select.keep_share and are left out"),
    ):
        if count:
            print(f"{count} {what}")
    print(f"train on them with --distill.rollouts {result['directory']}")


def show_ranking(ranking: TeacherRanking) -> None:
    """Teachers in order, and how sure that is."""
    from rich.console import Console
    from rich.table import Table

    best = "lowest" if ranking.lower_is_better else "highest"
    table = Table(title=f"teachers by {ranking.score} ({best} first) on {ranking.num_shared_prompts:,} shared prompts")
    for heading in ("teacher", "prompts", "mean", "95% interval", "to the first", "95% interval"):
        table.add_column(heading, justify="left" if heading == "teacher" else "right")
    for i, row in enumerate(ranking.teachers):
        difference = (f"{row.difference:+.4f}", f"{row.difference_low:+.4f} to {row.difference_high:+.4f}")
        interval = f"{row.low:.4f} to {row.high:.4f}"
        table.add_row(row.name, f"{row.num_prompts:,}", f"{row.mean:.4f}", interval, *(difference if i else ("", "")))
    Console(width=120).print(table)
    for row in ranking.teachers[1:]:
        if row.difference_low <= 0 <= row.difference_high:
            print(f"{row.name} cannot be told from {ranking.teachers[0].name}: the interval of the difference holds 0")


def _rollouts_of(path: Path) -> Path:
    return path.resolve() if (path / "manifest.json").is_file() else (path / "rollouts").resolve()


def main(argv: list[str]) -> int:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument(
        "--rank-teachers", type=Path, nargs="+", metavar="RUN", help="runs or rollouts of two or more teachers to rank"
    )
    extra.add_argument("--json", action="store_true", help="print the results as JSON, and nothing else")
    config, flags = load_config("select", "Which rollouts to learn from, told before training.", argv, extra=extra)
    directories = [_rollouts_of(path) for path in flags.rank_teachers or []]
    if flags.rank_teachers and len(set(directories)) < 2:
        raise ConfigError("--rank-teachers needs the rollouts of two teachers at least")
    if flags.rank_teachers and config.select.score == "divergence":
        raise ConfigError(
            "select.score divergence cannot rank teachers: it needs the log-probabilities of each response's own teacher, and"
            " one teacher is configured; choose lalp, aslec_drop, naturalness, rsr or correct"
        )
    if flags.rank_teachers and config.select.keep_share < 1:
        raise ConfigError("select.keep_share has no effect with --rank-teachers, which selects nothing")
    if flags.dry_run:
        check(config, directories or [source_directory(config)], fetch=False)
        print_dry_run(config, sections(config), actors=False)
        return 0
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
