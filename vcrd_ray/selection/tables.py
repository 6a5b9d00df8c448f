"""What a selection or a ranking of teachers came to, for a terminal. Computes nothing."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from vcrd_ray.grading.figures import GradingFigures, say
from vcrd_ray.selection.ranking import TeacherRanking


def show(result: dict[str, Any]) -> None:
    """Counts of a selection."""
    table = Table(title=f"best {result['side']} responses by {result['score']}")
    for heading in ("", "all", "kept"):
        table.add_column(heading, justify="right" if heading else "left")
    table.add_row("prompts", f"{result['prompts']:,}", f"{result['kept']:,}")
    table.add_row("responses", f"{result['responses']:,}", f"{result['kept']:,}")
    table.add_row(f"mean {result['score']}", f"{result['mean_score']:.4f}", f"{result['mean_score_of_kept']:.4f}")
    shares = [result[name] for name in ("share_correct", "share_correct_of_kept")]
    table.add_row("right answers", *("-" if s is None else f"{100 * s:.1f}%" for s in shares))
    Console(width=100).print(table)
    for count, what in (
        (result["unusable_responses"], "responses are unusable; see rejects.jsonl"),
        (
            result["unscored_responses"],
            "responses have no score: too short for it, or without a gold answer that can be graded",
        ),
        (result["prompts_without_correct"], "prompts have no response with the gold answer and are left out"),
        (result["prompts_without_score"], "prompts have no response with a score and are left out"),
        (result["prompts_below_share"], "prompts are below select.keep_share and are left out"),
    ):
        if count:
            print(f"{count} {what}")
    if "grading" in result:
        say(result["side"], GradingFigures.model_validate(result["grading"]))
    print(f"train on them with --distill.rollouts {result['directory']}")


def show_ranking(ranking: TeacherRanking) -> None:
    """Teachers in order, and how sure that is."""
    best = "lowest" if ranking.lower_is_better else "highest"
    table = Table(title=f"teachers by {ranking.score} ({best} first) on {ranking.num_shared_prompts:,} shared prompts")
    for heading in ("teacher", "prompts", "mean", "95% interval", "to the first", "95% interval"):
        table.add_column(heading, justify="left" if heading == "teacher" else "right")
    for i, row in enumerate(ranking.teachers):
        difference = (f"{row.difference:+.4f}", f"{row.difference_low:+.4f} to {row.difference_high:+.4f}")
        interval = f"{row.low:.4f} to {row.high:.4f}"
        table.add_row(row.name, f"{row.num_prompts:,}", f"{row.mean:.4f}", interval, *(difference if i else ("", "")))
    Console(width=120).print(table)
    for row in ranking.teachers[1:]:
        if row.difference_low <= 0 <= row.difference_high:
            print(f"{row.name} cannot be told from {ranking.teachers[0].name}: the interval of the difference holds 0")
