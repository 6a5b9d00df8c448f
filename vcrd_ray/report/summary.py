"""What a pipeline came to, for a terminal. Computes nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from vcrd_ray.data.accuracy import Accuracy


def show(summary: dict[str, Any]) -> None:
    """The closing table."""
    table = Table(title="pass@1 on held-out problems")
    for heading in ("model", "pass@1", "interval", "problems"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    names = {"teacher": "teacher", "student": "student", "sft": "student after SFT"}
    for label, figures in summary["accuracy"].items():
        result = Accuracy(**figures)
        table.add_row(
            names.get(label, f"student after {label.upper()}"),
            f"{100 * result.pass_at_1:.1f}%",
            f"{100 * result.low:.1f} to {100 * result.high:.1f}%",
            str(result.total),
        )
    if summary["accuracy"]:
        Console().print(table)
    else:
        print(
            "evaluate.prompts has no gold answers (answer_key null), so there is no pass@1; see jobs.evaluate --suites"
        )
    for method, share in summary["exposed_wait_share"].items():
        print(f"{method}: exposed wait for other actors {100 * share:.1f}% of the update time")
    print(f"wall time {summary['wall_s']['total']:.0f} s")
    print(f"report: {summary['report']}")
