"""Win rates, for a terminal. Computes nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from vcrd_ray.evaluation.instruct.figures import PairwiseFigures
from vcrd_ray.evaluation.instruct.questions import Questions
from vcrd_ray.grading.figures import cut_off_warning


def show(found: Mapping[str, PairwiseFigures]) -> None:
    """A table of sets."""
    table = Table(title="win rate against reference answers")
    for heading in ("set", "win rate", "interval", "pairs", "unparsable", "refused", "order changes it"):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for name, one in found.items():
        rate = one.win_rate
        table.add_row(
            name,
            f"{100 * rate.value:.1f}%",
            f"{100 * rate.low:.1f} to {100 * rate.high:.1f}%",
            str(one.num_pairs),
            str(one.unparsable),
            str(one.refused),
            f"{one.inconsistent} of {one.compared}",
        )
    Console(width=110).print(table)


def show_answers(questions: Questions) -> None:
    """How a model's answers ended, and a warning where many were cut off."""
    counts, name = questions.counts, questions.name
    share = 100 * counts["cut_off"] / max(1, counts["answers"])
    print(f"{name}: {share:.1f}% of {counts['answers']} answers cut off at the limit")
    if counts["thought"] or counts["unfinished"]:
        print(f"{name}: thinking was taken off {counts['thought']} answers, {counts['unfinished']} did not end it")
    for warning in cut_off_warning(name, counts["cut_off"], counts["answers"]):
        print(warning, file=sys.stderr)
