"""The paper's tables as printed: numbers published by others, to stand beside measured ones. Knows no models."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from vcrd_ray.config.yaml_files import read_yaml

_FILE = Path(__file__).with_name("published.yml")


class Row(BaseModel):
    """One line of a table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: str
    method: str
    published: float
    """The mean as printed, which is not always that of the columns."""
    scores: tuple[float, ...] = ()
    """The columns; empty where only the mean was printed."""


class PublishedTable(BaseModel):
    """The rows of one table that share a pair of models."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    config: str
    teacher: str
    student: str
    figure: str
    """What the published mean is of."""
    columns: tuple[str, ...]
    teacher_scores: tuple[float, ...] = ()
    student_scores: tuple[float, ...] = ()
    """Before training."""
    rows: tuple[Row, ...]

    @model_validator(mode="after")
    def _every_column_has_its_score(self) -> Self:
        for scores in (self.teacher_scores, self.student_scores, *(row.scores for row in self.rows)):
            if len(scores) not in (0, len(self.columns)):
                raise ValueError(
                    f"table {self.table}, {self.config}: {len(scores)} scores to {len(self.columns)} columns"
                )
        return self

    @property
    def lines(self) -> list[tuple[str, tuple[float, ...]]]:
        """Everything with scores, in order: the models first."""
        models = [("teacher", self.teacher_scores), ("student before training", self.student_scores)]
        return [line for line in [*models, *((row.row, row.scores) for row in self.rows)] if line[1]]


def read_published() -> list[PublishedTable]:
    """All tables, in the paper's order."""
    content = read_yaml(_FILE)
    return [PublishedTable.model_validate(table) for table in content["tables"]]


def published_for(*, teacher: str, student: str) -> PublishedTable | None:
    """The main table of a pair of models, given as paths or hub names; None where the paper has none.

    Its ablations are tables of their own, without the models' scores.
    """
    pair = (_name(teacher), _name(student))
    for table in read_published():
        if table.teacher_scores and (_name(table.teacher), _name(table.student)) == pair:
            return table
    return None


def _name(model: str) -> str:
    return Path(model).name.lower()
