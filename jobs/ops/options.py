"""Options of a job's command line, read and replaced without its parser."""

from __future__ import annotations

from collections.abc import Sequence


def option_value(options: Sequence[str], name: str) -> str | None:
    """The value in `--name VALUE` or `--name=VALUE`; the last one counts, as for argparse."""
    found = None
    for word, following in zip(options, [*options[1:], None], strict=False):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.removeprefix(f"{name}=")
    return found


def with_option(options: Sequence[str], name: str, value: str) -> list[str]:
    """The same options with another value for `name`, in front of them all."""
    kept = []
    previous = ""
    for word in options:
        if name not in (word, previous) and not word.startswith(f"{name}="):
            kept.append(word)
        previous = word
    return [name, value, *kept]
