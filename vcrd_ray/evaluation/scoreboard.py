"""Evaluations of a run on benchmarks -> one table, published numbers beside measured ones. Knows nothing of HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcrd_ray.evaluation.instruct.figures import PairwiseFigures
from vcrd_ray.evaluation.published import PublishedTable
from vcrd_ray.evaluation.results import BenchmarkFigures


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A measured share with its interval."""

    value: float
    low: float
    high: float
    num_questions: int


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """One evaluation."""

    label: str
    backend: str
    """Whose prompts and rules of grading."""
    cells: Mapping[str, Cell]
    """By column."""


@dataclass(frozen=True, kw_only=True)
class Scoreboard:
    """All evaluations of a run, and what others published for its pair of models."""

    columns: tuple[str, ...]
    measured: tuple[MeasuredRow, ...]
    published: PublishedTable | None

    @property
    def published_lines(self) -> list[tuple[str, dict[str, float]]]:
        """Each with its scores by column, in per cent."""
        if self.published is None:
            return []
        columns = self.published.columns
        return [(name, dict(zip(columns, scores, strict=True))) for name, scores in self.published.lines]


def read_scoreboard(folders: Mapping[str, Path], *, published: PublishedTable | None) -> Scoreboard | None:
    """The table of evaluation folders by label; None where no benchmark was evaluated."""
    measured = tuple(row for label, folder in folders.items() if (row := _measured(label, folder)) is not None)
    if not measured:
        return None
    # In the paper's order where it has one, then as they come.
    known = () if published is None else published.columns
    columns = dict.fromkeys([*known, *(column for row in measured for column in row.cells)])
    return Scoreboard(columns=tuple(columns), measured=measured, published=published)


def _measured(label: str, folder: Path) -> MeasuredRow | None:
    cells: dict[str, Cell] = {}
    figures, instruct = folder / "figures.json", folder / "instruct.json"
    backend = "own"
    if figures.is_file():
        content = _read(figures)
        backend = content.get("backend", backend)
        for one in content["sets"]:
            cells |= _columns(BenchmarkFigures.model_validate(one), backend)
    if instruct.is_file():
        for name, one in _read(instruct)["sets"].items():
            rate = PairwiseFigures.model_validate(one).win_rate
            cells[name] = Cell(value=rate.value, low=rate.low, high=rate.high, num_questions=rate.num_pairs)
    return MeasuredRow(label=label, backend=backend, cells=cells) if cells else None


def _columns(figures: BenchmarkFigures, backend: str) -> dict[str, Cell]:
    """A set's headline, and the plus of a code set."""
    found = {}
    for metric in figures.metrics:
        cell = Cell(value=metric.value, low=metric.low, high=metric.high, num_questions=figures.num_questions)
        if backend == "lm-eval":
            # Another protocol: never in one column with the paper's.
            found[f"{figures.name} ({metric.metric})"] = cell
        elif metric.metric == "plus":
            found[f"{figures.name}+"] = cell
        elif metric is figures.metrics[0]:
            found[figures.name] = cell
    return found


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
