"""Graded responses -> how many were cut off, right, thought; in a record, in a line, and as a warning. Grades nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from vcrd_ray.config.base import Thinking
from vcrd_ray.grading.responses import Checked, GraderName, ResponseGrader

MOST_CUT_OFF = 0.1
"""Share of responses at the length limit above which a job warns: a response that was cut off states no answer, so the share
of right ones says as much of the limit as of the model, and training on them teaches not to end."""

_WARNING = "warning: "


class GradingFigures(BaseModel):
    """What became of responses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    responses: int
    cut_off: int
    """Ended at the length limit."""
    grader: GraderName | None
    """None: nothing was graded."""
    ungraded_because: str | None = None
    graded: int = 0
    right: int = 0
    right_whole: int = 0
    """Were the thinking read as part of the answer."""
    timeouts: int = 0
    """Not decided in time, or by a process that died: wrong."""
    thought: int = 0
    """With thinking before the answer."""
    unfinished: int = 0
    """Thinking that did not end: without an answer."""
    refused_golds: dict[str, int] = {}
    """Golds that no response could meet, by reason."""
    thinking: Thinking = None
    """The marks that were looked for."""


def grading_figures(
    checked: Iterable[Checked], grader: ResponseGrader | None, *, because: str | None = None, thinking: Thinking = None
) -> GradingFigures:
    """Sums over responses of one set.

    Args:
        because: why there is no grader.
        thinking: the marks that were looked for without one.
    """
    rows = list(checked)
    known = [row for row in rows if row.right is not None]
    return GradingFigures(
        responses=len(rows),
        cut_off=sum(row.cut_off for row in rows),
        grader=None if grader is None else grader.name,
        ungraded_because=because,
        graded=len(known),
        right=sum(bool(row.right) for row in known),
        right_whole=sum(bool(row.right_whole) for row in known),
        timeouts=sum(row.verdict in ("timeout", "crashed") for row in known),
        thought=sum(row.thinking == "finished" for row in rows),
        unfinished=sum(row.thinking == "unfinished" for row in rows),
        refused_golds={} if grader is None else grader.refused,
        thinking=thinking if grader is None else grader.thinking,
    )


def say(name: str, figures: GradingFigures) -> None:
    """Print the summary; what is a warning to standard error."""
    for line in summary(name, figures):
        print(line, file=sys.stderr if line.startswith(_WARNING) else sys.stdout)


def summary(name: str, figures: GradingFigures) -> list[str]:
    """Lines for a terminal; warnings last."""
    lines = [
        f"{name}: {_share(figures.cut_off, figures.responses)} of {figures.responses} responses cut off at the limit"
    ]
    if figures.graded:
        lines[0] += f"; {_share(figures.right, figures.graded)} of {figures.graded} right by {figures.grader}"
    elif figures.ungraded_because:
        lines[0] += f"; not graded: {figures.ungraded_because}"
    if figures.timeouts:
        lines.append(f"{name}: {figures.timeouts} responses could not be graded in time and count as wrong")
    if figures.thought or figures.unfinished:
        read = f", {figures.right_whole} right were the thinking read too" if figures.graded else ""
        lines.append(
            f"{name}: {figures.thought} thought before they answered, {figures.unfinished} did not end it{read}"
        )
    if figures.refused_golds:
        refused = ", ".join(f"{count} {reason}" for reason, count in figures.refused_golds.items())
        lines.append(f"{name}: golds that no response could meet are left out: {refused}")
    return [*lines, *cut_off_warning(name, figures.cut_off, figures.responses)]


def cut_off_warning(name: str, cut_off: int, responses: int, *, limit: str = "max_new_tokens") -> list[str]:
    """A line where more than `MOST_CUT_OFF` were cut off, else none."""
    if cut_off <= MOST_CUT_OFF * responses:
        return []
    return [
        f"{_WARNING}{name}: {_share(cut_off, responses)} of the responses reached the length limit, more than"
        f" {100 * MOST_CUT_OFF:.0f}%: they state no answer; raise {limit}"
    ]


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f}%" if total else "none"
