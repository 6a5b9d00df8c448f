"""The rows of the paper's tables by name: what was published, and the command that runs the row. Knows no models.

Used through `python -m jobs.tables paper [--table T]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vcrd_ray.evaluation.published import PublishedTable, read_published

FOLDER = Path(__file__).parent / "configs" / "paper"


class PaperTable(PublishedTable):
    """A published table, and what runs it."""

    @property
    def path(self) -> Path:
        """The config of the pair."""
        return FOLDER / f"{self.config}.yaml"


def read_tables() -> list[PaperTable]:
    """All of them, in the paper's order."""
    return [PaperTable.model_validate(table.model_dump()) for table in read_published()]


def main(argv: Sequence[str]) -> int:
    """Print the rows with the command of each."""
    tables = read_tables()
    parser = argparse.ArgumentParser(prog="python -m jobs.tables paper", description=__doc__)
    parser.add_argument("--table", choices=list(dict.fromkeys(t.table for t in tables)), help="this one only")
    chosen = parser.parse_args(argv).table
    console = Console(width=130)
    for table in tables:
        if chosen not in (None, table.table):
            continue
        shown = Table(title=f"table {table.table}, {table.config}: {table.figure}", title_justify="left")
        shown.add_column("row")
        shown.add_column("published", justify="right")
        shown.add_column("command", overflow="fold")
        for row in table.rows:
            command = f"python -m jobs.pipeline --config jobs/configs/paper/{table.config}.yaml --methods {row.method}"
            shown.add_row(row.row, f"{row.published:.2f}", command)
        console.print(shown)
    return 0
