"""A calibration, for a terminal or for programs. Computes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vcrd_ray.evaluation.processbench import BenchFigures
from vcrd_ray.grading.figures import say
from vcrd_ray.report.calibration_figures import CalibrationReport, extrapolation, verdict


def as_json(report: CalibrationReport | None, results: Sequence[BenchFigures]) -> str:
    """Both for programs."""
    benches = [figures.model_dump(mode="json") for figures in results]
    shown = {"calibration": report and report.model_dump(mode="json"), "processbench": benches}
    return json.dumps(shown, indent=2)


def show(report: CalibrationReport) -> None:
    """Table and verdict of a calibration."""
    title = f"{report.calibration.family} judge on {report.num_responses} responses, {report.num_right} of them right"
    table = Table(title=title)
    headings = ("position", "reads", "AUC", "95% interval", "mean score", "right", "ECE", "Brier")
    for heading in (*headings, "< 0.02", "> 0.98", "ECE held out", "calibrated"):
        table.add_column(heading, justify="left" if heading == "position" else "right")
    for name, row in report.classes.items():
        before, after = row.held_out_before, row.held_out_after
        table.add_row(
            name.replace("_", " "),
            f"{row.reads:,}",
            _shown(row.auc),
            "-" if row.auc_low is None or row.auc_high is None else f"{row.auc_low:.3f} to {row.auc_high:.3f}",
            f"{row.mean_score:.3f}",
            f"{row.share_right:.3f}",
            f"{row.quality.ece:.3f}",
            f"{row.quality.brier:.3f}",
            f"{100 * row.saturated_low:.1f}%",
            f"{100 * row.saturated_high:.1f}%",
            _shown(None if before is None else before.ece),
            _shown(None if after is None else after.ece),
        )
    Console(width=140).print(table)
    for other in report.others:
        for name, figures in other.classes.items():
            print(
                f"{other.name}, {name.replace('_', ' ')}: rank correlation {_shown(figures.spearman)}, same side of 0.5 at"
                f" {100 * figures.same_side:.1f}% of {figures.reads:,} positions"
            )
    notes = [f"{name.replace('_', ' ')}: {row.note}" for name, row in report.classes.items() if row.note]
    invalid = sum(row.invalid for row in report.classes.values())
    notes += [f"{invalid} scores were no numbers and are left out"] if invalid else []
    notes += [f"{report.num_unchecked} responses have no gold answer and are left out"] if report.num_unchecked else []
    for line in (*notes, verdict(report.classes), extrapolation(report)):
        if line:
            print(line)
    if report.grading is not None:
        say("rollouts", report.grading)


def show_processbench(results: Sequence[BenchFigures]) -> None:
    """ProcessBench's table, a row a file."""
    table = Table(title=f"ProcessBench, first step with a score below {results[0].threshold:g}")
    for heading in ("file", "with error", "found", "without", "left alone", "F1", "skipped"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    for row in results:
        shares = ["-" if v is None else f"{100 * v:.1f}" for v in (row.error_accuracy, row.correct_accuracy, row.f1)]
        counts = (str(row.error_items), shares[0], str(row.correct_items), shares[1], shares[2], str(row.skipped))
        table.add_row(row.name, *counts)
    Console(width=100).print(table)
    for row in results:
        if row.skipped:
            print(f"{row.name}: {row.skipped} items skipped; the first is {row.skip_reason}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
