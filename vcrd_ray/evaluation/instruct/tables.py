"""Win rates, for a terminal. Computes nothing."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from vcrd_ray.evaluation.instruct.figures import PairwiseFigures


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
