"""Scored responses -> those to keep, and a rollouts directory of them that jobs.distill reads as it is. Knows no models.

<directory>/manifest.json parts/   rollouts, whose manifest names the score and the source in `prompts`
<directory>/selection.json   what was selected from what, by which score
<directory>/scores.parquet   every response with its score, and whether it was kept
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from vcrd_ray.config.select import SelectSection
from vcrd_ray.data.manifest import Manifest, ids_digest, pair_id
from vcrd_ray.data.rollouts import open_rollouts, read_parts, write_part
from vcrd_ray.errors import DataError
from vcrd_ray.grading.responses import GraderName
from vcrd_ray.runs.files import write_json, written_aside

_SELECTION = "selection.json"
_SCORES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("block", pa.int32()),
        ("row", pa.int32()),
        ("num_tokens", pa.int32()),
        ("num_steps", pa.int32()),
        ("correct", pa.bool_()),
        ("score", pa.float64()),
    ]
)


class Selection(BaseModel):
    """What a selection is made from. Two selections with equal records keep the same responses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    """Path of the rollouts; the next field says which they are."""
    source_manifest: Manifest
    student: str | None
    teacher: str | None
    """Fingerprints of the models that scored; None where the score needs none."""
    settings: SelectSection
    max_length: int
    grader: GraderName | None = None
    """Rules by which responses were found right, which the golds of the rollouts ask for; None: not graded, or not yet."""

    @property
    def digest(self) -> str:
        """Short hash over everything but the path, and the grader, which follows from the rest."""
        return hashlib.sha256(self.model_dump_json(exclude={"source", "grader"}).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One response with its score."""

    prompt_id: str
    sample: int
    block: int
    row: int
    num_tokens: int
    num_steps: int
    correct: bool | None
    """None where there is no gold answer."""
    score: float | None
    """None where the score says nothing of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The responses that are kept, and why prompts are not."""

    kept: tuple[int, ...]
    """Indices of the responses, one a prompt, in the order they were given in."""
    num_prompts: int
    num_incorrect: int
    """Prompts without a response that gives the gold answer, where one is required."""
    num_unscored: int
    """Other prompts none of whose responses has a score."""
    num_below_share: int
    """Prompts whose best response is not among the best."""


def choose(responses: Sequence[Scored], *, lower_is_better: bool, require_correct: bool, keep_share: float) -> Choice:
    """The best response to each prompt, and of those the best share, rounded up. Of equals the first is taken."""
    of_prompt: dict[str, list[int]] = {}
    for index, response in enumerate(responses):
        of_prompt.setdefault(response.prompt_id, []).append(index)

    def badness(index: int) -> tuple[float, int]:
        score = responses[index].score
        assert score is not None
        return (score if lower_is_better else -score), index

    best: list[int] = []
    num_incorrect = num_unscored = 0
    for indices in of_prompt.values():
        allowed = [i for i in indices if responses[i].correct or not require_correct]
        scored = [i for i in allowed if responses[i].score is not None]
        if scored:
            best.append(min(scored, key=badness))
        elif allowed:
            num_unscored += 1
        else:
            num_incorrect += 1
    # 0.07 * 100 is a little more than 7, and would be rounded up to 8.
    count = ceil(keep_share * len(best) - 1e-9)
    kept = sorted(sorted(best, key=badness)[:count])
    return Choice(
        kept=tuple(kept),
        num_prompts=len(of_prompt),
        num_incorrect=num_incorrect,
        num_unscored=num_unscored,
        num_below_share=len(best) - count,
    )


def open_selection(directory: Path, selection: Selection) -> None:
    """Start or go on with a directory.

    Raises:
        DataError: it holds another selection.
    """
    path = directory / _SELECTION
    if path.exists():
        try:
            earlier = Selection.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError:
            raise DataError(f"{path}: not written by this version of jobs.select; remove {directory}") from None
        made_from = Selection.model_fields.keys() - {"grader"}
        names = sorted(n for n in made_from if getattr(earlier, n) != getattr(selection, n))
        if names:
            raise DataError(
                f"{directory} holds a selection made with another {', '.join(names)}; remove it, or choose another --run.dir"
            )
        selection = selection.model_copy(update={"grader": earlier.grader})
    write_json(path, selection)


def name_grader(directory: Path, selection: Selection, grader: GraderName | None) -> None:
    """Put the rules by which responses were found right into the record."""
    write_json(directory / _SELECTION, selection.model_copy(update={"grader": grader}))


def write_scores(path: Path, responses: Sequence[Scored], *, kept: Sequence[int] | None = None) -> None:
    """All scores as Parquet, with the column `kept` where it is known; written aside."""
    table = pa.Table.from_pylist([asdict(response) for response in responses], schema=_SCORES)
    if kept is not None:
        table = table.append_column("kept", pa.array(np.isin(np.arange(len(responses)), kept)))
    _write(path, table)


def read_scores(path: Path) -> list[Scored]:
    """What `write_scores` wrote."""
    return [Scored(**row) for row in pq.read_table(path, columns=_SCORES.names).to_pylist()]


def write_selected(directory: Path, selection: Selection, responses: Sequence[Scored], kept: Sequence[int]) -> Manifest:
    """The kept rows of the source as rollouts, unchanged and in their order; the manifest stands before the parts.

    Raises:
        DataError: the source is gone or damaged, or the directory holds other rollouts.
    """
    rows: dict[int, list[int]] = {}
    for index in kept:
        rows.setdefault(responses[index].block, []).append(responses[index].row)
    blocks = sorted(rows)
    settings, source = selection.settings, selection.source_manifest
    manifest = source.model_copy(
        update={
            "samples": 1,
            "num_prompts": len(kept),
            "blocks": tuple(len(rows[block]) for block in blocks),
            "prompts": f"{source.prompts}, selected by {settings.score} of the {settings.side}: {selection.digest}",
            "pairs": ids_digest(pair_id(responses[i].prompt_id, responses[i].sample) for i in kept),
        }
    )
    missing = {blocks[number]: number for number in open_rollouts(directory, manifest)}
    for block, table in enumerate(read_parts(Path(selection.source), source)):
        if block in missing:
            write_part(directory, missing[block], table.take(rows[block]), seconds=(0.0, 0.0))
    return manifest


def _write(path: Path, table: pa.Table) -> None:
    with written_aside(path) as temporary:
        pq.write_table(table, temporary)
