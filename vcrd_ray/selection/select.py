"""A rollouts directory -> the responses to learn from, and what the choice says of itself. Scores only missing blocks."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from vcrd_ray.config import Config
from vcrd_ray.data.manifest import read_manifest
from vcrd_ray.data.problems import Reject, write_rejects
from vcrd_ray.errors import DataError
from vcrd_ray.models.checkpoint_files import model_fingerprint, resolve_model
from vcrd_ray.runs.directory import versions
from vcrd_ray.runs.files import write_json
from vcrd_ray.runs.progress import ShowProgress
from vcrd_ray.selection.candidates import Candidate
from vcrd_ray.selection.choose import (
    Choice,
    Scored,
    Selection,
    choose,
    name_grader,
    open_selection,
    read_scores,
    write_scores,
    write_selected,
)
from vcrd_ray.selection.scores import LOWER_IS_BETTER
from vcrd_ray.selection.scoring import Scoring


def select(config: Config, directory: Path, source: Path, show_progress: ShowProgress) -> dict[str, Any]:
    """Select from the rollouts in `source` into `directory`, or finish; what stands in summary.json.

    Raises:
        DataError: nothing is left, or a directory of another selection.
    """
    section = config.select
    selection = _selection(config, source)
    open_selection(directory, selection)
    summary = directory / "summary.json"
    if summary.exists():
        done: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
        return done
    started = time.perf_counter()
    scoring = Scoring(config)
    candidates, rejects, grading = scoring.candidates(source)
    name_grader(directory, selection, grading.grader)
    say_left_out(rejects)
    write_rejects(directory / "rejects.jsonl", rejects)
    responses = _scored(directory / "scores", scoring, candidates, show_progress)
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
    write_scores(directory / "scores.parquet", responses, kept=choice.kept)
    manifest = write_selected(directory, selection, responses, choice.kept)
    result = {
        "directory": str(directory),
        "source": str(source),
        "score": section.score,
        "side": section.side,
        "selected": manifest.prompts,
        "unusable_responses": len(rejects),
        **_figures(responses, choice),
        "grading": grading.model_dump(mode="json"),
        "tokens_read": scoring.num_tokens,
        "seconds": time.perf_counter() - started,
        "made_with": versions(),
    }
    write_json(summary, result)
    shutil.rmtree(directory / "scores", ignore_errors=True)
    return result


def say_left_out(rejects: Sequence[Reject]) -> None:
    """Tell the person who waits that some responses cannot be scored."""
    if rejects:
        print(f"{len(rejects)} responses are left out; the first: {rejects[0].reason}", file=sys.stderr)


def _selection(config: Config, source: Path) -> Selection:
    section = config.select
    student = model_fingerprint(resolve_model(config.student.path)) if section.score != "correct" else None
    teacher = model_fingerprint(resolve_model(config.teacher.path)) if section.score == "divergence" else None
    return Selection(
        source=str(source),
        source_manifest=read_manifest(source),
        student=student,
        teacher=teacher,
        settings=section,
        max_length=config.distill.max_length,
    )


def _figures(responses: Sequence[Scored], choice: Choice) -> dict[str, Any]:
    found = [r.score for r in responses if r.score is not None]
    kept = [responses[i] for i in choice.kept]
    return {
        "prompts": choice.num_prompts,
        "responses": len(responses),
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
    }


def _scored(
    folder: Path, scoring: Scoring, candidates: Sequence[Candidate], show_progress: ShowProgress
) -> list[Scored]:
    """Every response with its score; a block's are kept in a file of their own, which a second call reads."""
    folder.mkdir(exist_ok=True)
    responses: list[Scored] = []
    with show_progress("select", len(candidates), "responses") as progress:
        for block, group in groupby(candidates, key=lambda c: c.block):
            path, members = folder / f"block-{block:05d}.parquet", list(group)
            # Nothing is saved by keeping what is the grade alone.
            if path.exists() and scoring.costs:
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
            # The grade is never an old one: an earlier version may have had other rules.
            responses += [replace(s, correct=c.correct) for s, c in zip(read_scores(path), members, strict=True)]
    return responses


def _share_correct(responses: Sequence[Scored]) -> float | None:
    known = [r.correct for r in responses if r.correct is not None]
    return sum(known) / len(known) if known else None
