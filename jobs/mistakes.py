"""Mistakes in a file or on the command line -> one line each, with the nearest right key."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ValidationError

from vcrd_ray.config import Config
from vcrd_ray.config.base import keys, member_types


def explain(error: ValidationError) -> str:
    """One line for each mistake: the key as a person writes it, what is wrong, the nearest right key."""
    lines = []
    for item in error.errors(include_url=False):
        loc = [str(part) for part in item["loc"]]
        key = ".".join(loc) or "config"
        if item["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key{_suggest_key(loc)}")
        elif item["type"] == "value_error":
            prefix = f"{'.'.join(loc)}: " if loc else ""
            lines.append(prefix + item["msg"].removeprefix("Value error, "))
        else:
            lines.append(f"{key}: {item['msg']} (got {item['input']!r})")
    return "\n".join(dict.fromkeys(lines))


def suggest_option(message: str) -> str:
    """What may have been meant by the option that argparse complains of."""
    for word in message.split():
        if word.startswith("--"):
            close = difflib.get_close_matches(word.lstrip("-").split("=")[0], all_keys(), n=1, cutoff=0.75)
            if close:
                return f"; did you mean --{close[0]}?"
    return "; see --help for all options"


def all_keys() -> list[str]:
    """Every dotted key a person may set."""
    return list(dict.fromkeys(key for key, _ in keys(Config)))


def _suggest_key(loc: list[str]) -> str:
    # A union's tag stands in the path that pydantic reports but not in the file: match with and without it.
    known = all_keys()
    written = ".".join(loc)
    tags = _tags()
    without_tags = ".".join(part for i, part in enumerate(loc) if i == len(loc) - 1 or part not in tags)
    if without_tags in known:
        return f": {loc[-1]} belongs to another type of {'.'.join(loc[:-2])}"
    for attempt in (written, without_tags):
        close = difflib.get_close_matches(attempt, known, n=1, cutoff=0.75)
        if close:
            return f"; did you mean {close[0]}?"
    return "; see --help for all keys"


def _tags(model: type[BaseModel] = Config) -> set[str]:
    """Every value of a union's `type`."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        if name == "type":
            found.add(field.default)
        for member in member_types(field.annotation):
            if isinstance(member, type) and issubclass(member, BaseModel):
                found |= _tags(member)
    return found
