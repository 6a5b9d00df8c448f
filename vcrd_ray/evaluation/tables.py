"""Figures of benchmarks, for a terminal. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vcrd_ray.evaluation.results import BenchmarkFigures


def show(figures: Sequence[BenchmarkFigures]) -> None:
    """A table of benchmarks: each metric with its interval."""
    table = Table(title="pass@1")
    for heading in ("set", "metric", "pass@1", "interval", "questions", "cut off", "no room"):
        table.add_column(heading, justify="left" if heading in ("set", "metric") else "right")
    for one in figures:
        for metric in one.metrics:
            table.add_row(
                one.name,
                metric.metric,
                f"{100 * metric.value:.1f}%",
                f"{100 * metric.low:.1f} to {100 * metric.high:.1f}%",
                str(one.num_questions),
                str(one.cut_off),
                str(one.no_room),
            )
    Console(width=110).print(table)
