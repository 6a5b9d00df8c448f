"""A rollouts directory -> what became of its responses. Grades those of one side, or all of it for its record.

<directory>/grading.json   of teacher and student: cut off, right, thought
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vcrd_ray.config.base import Thinking
from vcrd_ray.data.manifest import Manifest
from vcrd_ray.data.rollouts import read_parts
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.grading.figures import GradingFigures, grading_figures
from vcrd_ray.grading.responses import Checked, Response, ResponseGrader
from vcrd_ray.grading.thinking import decode_response, opens_thinking, read_answer
from vcrd_ray.runs.files import write_json
from vcrd_ray.types import SIDES, Side

RECORD = "grading.json"
_CURE = "set rollouts.prompts.answer_key and make the rollouts again in another --run.dir"


def rollouts_grader(golds: Sequence[str | None], directory: Path, thinking: Thinking) -> ResponseGrader:
    """The grader of a directory's golds.

    Raises:
        DataError: none of them is one that a response could meet.
        ConfigError: they need a library that is not installed.
    """
    return ResponseGrader(golds, thinking=thinking, source=str(directory), cure=_CURE)


def response_of(row: Mapping[str, Any], side: Side, *, tokenizer: Any, thinking: Thinking) -> Response:
    """One side's response of a row of a part, as it is graded.

    Args:
        row: with `answer`, `prompt_ids`, and of the side `ids` and `finish_reason`.
    """
    return Response(
        gold=row["answer"],
        text=decode_response(row[f"{side}_ids"], tokenizer, thinking),
        opened=opens_thinking(row["prompt_ids"], tokenizer, thinking),
        cut_off=row[f"{side}_finish_reason"] == "length",
    )


def grade_or_count(
    responses: Sequence[Response], directory: Path, thinking: Thinking
) -> tuple[list[Checked], GradingFigures]:
    """What became of responses; where none can be graded, what can be counted all the same, and why."""
    try:
        grader = rollouts_grader([r.gold for r in responses], directory, thinking)
    except (ConfigError, DataError) as error:
        return counted(responses, thinking, because=str(error))
    checked = grader.grade(responses)
    return checked, grading_figures(checked, grader)


def counted(responses: Sequence[Response], thinking: Thinking, *, because: str) -> tuple[list[Checked], GradingFigures]:
    """Without grades."""
    states = [read_answer(r.text, thinking, opened=r.opened).thinking for r in responses]
    rows = [
        Checked(right=None, right_whole=None, verdict="ungraded", thinking=state, cut_off=r.cut_off)
        for r, state in zip(responses, states, strict=True)
    ]
    return rows, grading_figures(rows, None, because=because, thinking=thinking)


def keep_grading(directory: Path, manifest: Manifest, tokenizer: Any, thinking: Thinking) -> dict[str, GradingFigures]:
    """What became of both sides' responses, kept in the directory."""
    file = directory / RECORD
    if file.exists():
        content = json.loads(file.read_text(encoding="utf-8"))
        return {side: GradingFigures.model_validate(figures) for side, figures in content.items()}
    found: dict[str, GradingFigures] = {}
    for side in SIDES:
        responses = [
            response_of(row, side, tokenizer=tokenizer, thinking=thinking)
            for table in read_parts(directory, manifest)
            for row in table.to_pylist()
        ]
        found[side] = grade_or_count(responses, directory, thinking)[1]
    write_json(file, {side: figures.model_dump(mode="json") for side, figures in found.items()})
    return found
