"""Rollouts of several teachers on the same prompts -> which teacher this student learns from most easily. Trains nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vcrd_ray.config import Config
from vcrd_ray.data.manifest import read_manifest
from vcrd_ray.errors import DataError
from vcrd_ray.grading.figures import GradingFigures, cut_off_warning
from vcrd_ray.runs.directory import versions
from vcrd_ray.runs.files import write_json
from vcrd_ray.runs.progress import ShowProgress
from vcrd_ray.selection.candidates import Candidate
from vcrd_ray.selection.ranking import TeacherRanking, rank_teachers
from vcrd_ray.selection.scores import ResponseScore
from vcrd_ray.selection.scoring import Scoring
from vcrd_ray.selection.select import say_left_out

RANKING_FOLDER = "teacher-ranking"


def rank(config: Config, directories: Sequence[Path], show_progress: ShowProgress) -> TeacherRanking:
    """Rank the teachers that made several rollouts; RUN/teacher-ranking/SCORE.json."""
    names = [d.parent.name if d.name == "rollouts" else d.name for d in directories]
    if len(set(names)) < len(names):
        names = [str(d) for d in directories]
    scoring = Scoring(config)
    responses: dict[str, list[Candidate]] = {}
    grading: dict[str, GradingFigures] = {}
    for name, directory in zip(names, directories, strict=True):
        responses[name], rejects, grading[name] = scoring.candidates(directory)
        say_left_out(rejects)
        for warning in cut_off_warning(name, grading[name].cut_off, grading[name].responses):
            print(warning, file=sys.stderr)
    if config.select.require_correct:
        responses = {name: [c for c in found if c.correct] for name, found in responses.items()}
    _check_same_prompts(responses)
    found: dict[str, dict[str, list[ResponseScore]]] = {name: {} for name in names}
    with show_progress("rank teachers", sum(map(len, responses.values())), "responses") as progress:
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
        "grading": {name: figures.model_dump(mode="json") for name, figures in grading.items()},
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
