"""Two evaluations on the same benchmarks, question by question: paired differences and what changed.

    python -m jobs.compare RUN_A/evaluate-LABEL RUN_B/evaluate-LABEL [--out FILE.html] [--confidence 0.95]

Prints a table and writes one HTML page with the questions whose verdict changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.cli import run_main
from vcrd_ray.config.base import CONFIDENCE
from vcrd_ray.evaluation.comparison import SetComparison, compare_evaluations
from vcrd_ray.runs.files import write_text

_SHOWN = 200
"""Changed questions of one set and metric that the page shows."""


def show(found: Sequence[SetComparison], names: tuple[str, str]) -> None:
    """The table, and a line for each set that is too small."""
    table = Table(title=f"{names[1]} less {names[0]}, on the same questions")
    for heading in ("set", "metric", "questions", names[0], names[1], "difference", "interval", "better", "worse", "p"):
        table.add_column(heading, justify="left" if heading in ("set", "metric") else "right")
    for one in found:
        paired = one.paired
        table.add_row(
            one.name,
            one.metric,
            str(paired.num_questions),
            *(f"{100 * share:.1f}%" for share in one.shares),
            f"{100 * paired.difference:+.1f}",
            f"{100 * paired.low:+.1f} to {100 * paired.high:+.1f}",
            str(paired.better),
            str(paired.worse),
            f"{paired.p_value:.3f}",
        )
    Console(width=130).print(table)
    for one in found:
        if one.warning:
            print(f"{one.name} ({one.metric}): {one.warning}")


def write_page(found: Sequence[SetComparison], names: tuple[str, str], path: Path) -> Path:
    """One HTML page that opens without network."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = Path(__file__).with_name("compare_template.html.j2").read_text(encoding="utf-8")
    write_text(path, environment.from_string(template).render(sets=found, names=names, shown=_SHOWN))
    return path.resolve()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("first", type=Path, help="folder that jobs.evaluate --suites wrote")
    parser.add_argument("second", type=Path, help="another one")
    parser.add_argument("--out", type=Path, help="page to write (default: compare.html in the second folder)")
    parser.add_argument(
        "--confidence", type=float, default=CONFIDENCE, help="level of the intervals (default: %(default)s)"
    )
    flags = parser.parse_args(argv)
    found = compare_evaluations(flags.first, flags.second, confidence=flags.confidence)
    names = _names(flags.first, flags.second)
    show(found, names)
    print(write_page(found, names, flags.out or flags.second / "compare.html"))
    return 0


def _names(first: Path, second: Path) -> tuple[str, str]:
    """What the two are called: their labels, with the runs before them where the labels are equal."""
    paths = (first.resolve(), second.resolve())
    labels = tuple(path.name.removeprefix("evaluate-") for path in paths)
    if labels[0] != labels[1]:
        return labels[0], labels[1]
    return f"{paths[0].parent.name}/{labels[0]}", f"{paths[1].parent.name}/{labels[1]}"


if __name__ == "__main__":
    run_main(main)
