"""Mistakes in a file or on the command line -> one line each, with the nearest right key."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Sequence

from pydantic import BaseModel, ValidationError

from vcrd_ray.config import Config
from vcrd_ray.config.base import keys, member_types


def explain(error: ValidationError, place: Callable[[Sequence[str]], str] = lambda key: "") -> str:
    """One line for each mistake: the key as a person writes it, what is wrong, the nearest right key.

    Args:
        place: says where a key was written, to stand before its line.
    """
    lines = []
    for item in error.errors(include_url=False):
        loc = [str(part) for part in item["loc"]]
        lines.append(place(loc) + _line(item["type"], loc, item["msg"], item.get("input"), item.get("ctx", {})))
    return "\n".join(dict.fromkeys(lines))


def _line(kind: str, loc: list[str], said: str, value: object, context: dict[str, object]) -> str:
    key = ".".join(loc) or "config"
    match kind:
        case "extra_forbidden":
            return f"{key}: unknown key{_suggest_key(loc)}"
        case "value_error":
            return (f"{'.'.join(loc)}: " if loc else "") + said.removeprefix("Value error, ")
        case "union_tag_not_found":
            return f"{key}: which type? give {key}.type, one of {', '.join(_types_of(loc))}"
        case "union_tag_invalid":
            return f"{key}.type: {context.get('tag')!r} is none of {context.get('expected_tags')}"
        case "model_type" | "model_attributes_type" | "dict_type":
            found = "nothing" if value is None else f"a {type(value).__name__}"
            return f"{key}: keys below it are expected, and there is {found}"
        case "string_type" if isinstance(value, int | float):
            return f"{key}: {said} (got {_shown(value)}; write it in quotes)"
    return f"{key}: {said} (got {_shown(value)})"


def _shown(value: object) -> str:
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 120
    return shown.repr(value).replace("\n", " ")


def _types_of(loc: Sequence[str]) -> list[str]:
    """The values that `type` may have in the union at a key."""
    found: dict[str, None] = {}
    models: list[type[BaseModel]] = [Config]
    for part in loc:
        # A union's tag in the path is no field of its members.
        models = [
            member
            for model in models
            for member in (_sections(model.model_fields[part].annotation) if part in model.model_fields else [model])
        ]
    for model in models:
        if "type" in model.model_fields:
            found[str(model.model_fields["type"].default)] = None
    return list(found)


def _sections(annotation: object) -> list[type[BaseModel]]:
    return [one for one in member_types(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]


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
    if "." in loc[-1] and without_tags in known:
        nested = loc[-1].split(".")
        return f"; a dot opens no section in a file: write {': {'.join(nested)}: ...{'}' * (len(nested) - 1)}"
    if without_tags in known:
        return f": {loc[-1]} belongs to another type of {without_tags.rpartition('.')[0]}"
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
        for member in _sections(field.annotation):
            found |= _tags(member)
    return found
