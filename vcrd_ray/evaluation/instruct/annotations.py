"""Judgements that AlpacaEval has published -> records, so that they are scored as one's own. Knows no judge."""

from __future__ import annotations

import math
from pathlib import Path

from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.instruct.pairwise import PairRecord, Ruling
from vcrd_ray.evaluation.instruct.prompts import Verdict
from vcrd_ray.evaluation.instruct.sets import Row, read_rows

_TIE = 1.5


def read_annotations(path: Path) -> list[PairRecord]:
    """The records of an `annotations.json`, or of the same rows as JSON Lines.

    A row's preference is between 1, for output_1 (the reference), and 2, for output_2 (the model); where the judge gave
    none it is missing and the row leaves the denominator. Rows do not tell which answer the judge saw first: rulings name
    the outputs as the rows do, so figures about order mean nothing here.

    Raises:
        DataError: the file is missing or malformed.
    """
    return [_record(row, position, where) for position, (where, row) in enumerate(read_rows(path, what="annotations"))]


def _record(row: Row, position: int, where: str) -> PairRecord:
    for key in ("output_1", "output_2"):
        if not isinstance(row.get(key), str):
            raise DataError(f"{where}: field {key!r} is no text; give AlpacaEval's annotations")
    identical = row["output_1"] == row["output_2"]
    score = _score(row.get("preference"), where)
    if identical and score is None:
        score = 0.5
    return PairRecord(
        id=str(row.get("id", position)),
        category=None if row.get("dataset") is None else str(row["dataset"]),
        identical=identical,
        rulings=(
            Ruling(
                order="reference_first",
                verdict=_verdict(score),
                score=score,
                reply=None,
                finish_reason=None,
                refusal=None,
            ),
        ),
    )


def _score(preference: object, where: str) -> float | None:
    if preference is None:
        return None
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise DataError(f"{where}: preference is {preference!r}; write a number from 1 to 2, or null")
    if math.isnan(preference):
        return None
    if preference == 0:
        # How the first releases wrote a tie.
        preference = _TIE
    if not 1 <= preference <= 2:
        raise DataError(f"{where}: preference is {preference!r}; write a number from 1 to 2, or null")
    return preference - 1.0


def _verdict(score: float | None) -> Verdict:
    if score is None:
        return "unparsable"
    return "C" if score == 0.5 else "B" if score > 0.5 else "A"
