"""Figures of benchmarks, for a terminal. Computes nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vcrd_ray.evaluation.results import BenchmarkFigures
from vcrd_ray.grading.figures import cut_off_warning


def show(figures: Sequence[BenchmarkFigures]) -> None:
    """A table of benchmarks, each metric with its interval; what was thought before answers, and where many were cut off."""
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
                f"{one.cut_off} ({100 * one.cut_off / max(1, metric.num_answers):.1f}%)",
                str(one.no_room),
            )
    Console(width=110).print(table)
    for one in figures:
        if one.thought or one.unfinished:
            whole = ", ".join(f"{m.num_correct_whole} instead of {m.num_correct} by {m.metric}" for m in one.metrics)
            print(
                f"{one.name}: thinking was taken off {one.thought} answers, {one.unfinished} did not end it; were it read as"
                f" part of the answer, right were {whole}"
            )
        for warning in cut_off_warning(one.name, one.cut_off, one.metrics[0].num_answers):
            print(warning, file=sys.stderr)
