"""What all sections share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

DType = Literal["float32", "bfloat16"]

CONFIDENCE = 0.95
"""Level of every interval whose level nobody has set."""

ROUNDING: dict[DType, float] = {"float32": 1e-3, "bfloat16": 0.2}
"""By how much, in nats or as a logit, two ways to compute the same may differ by rounding alone: seen, with room."""

ROUNDING_WORDS = ", ".join(f"{bound:g} in {dtype}" for dtype, bound in ROUNDING.items())
"""The same in a description."""

Thinking = tuple[Annotated[str, Field(min_length=1)], Annotated[str, Field(min_length=1)]] | None
"""What opens and what closes a reasoning model's thinking; None: nothing is taken off."""
THINKING: tuple[str, str] = ("<think>", "</think>")
"""Where nobody has named other marks."""

FREE_TO_CHANGE: JsonDict = {"free_to_change": True}
"""`json_schema_extra` of what says how or where a run is carried out, not what it computes: a resumed run may change it."""


_NAME_BYTES = 255
_PATH_BYTES = 4095


def check_location(value: str) -> str:
    """Refuse what no file system takes as a path, nor the hub or storage as a name.

    Raises:
        ValueError: it, or a name in it, is too long, or it begins with a home that is not there.
    """
    if value.startswith("~"):
        try:
            Path(value).expanduser()
        except RuntimeError:
            raise ValueError(f"{value}: no such user here, so no home directory") from None
    longest = max((len(os.fsencode(name)) for name in value.split("/")), default=0)
    if longest > _NAME_BYTES or len(os.fsencode(value)) > _PATH_BYTES:
        raise ValueError(f"a path with a name of {longest} bytes, and no file system takes more than {_NAME_BYTES}")
    return value


Location = Annotated[str, AfterValidator(check_location)]
"""A path, a name on the hub or a folder in storage."""


def _is_number(model: type[BaseModel], name: str) -> bool:
    """Whether a field wants a number and no truth value."""
    types = member_types(model.model_fields[name].annotation) if name in model.model_fields else []
    return bool not in types and any(kind in (int, float, timedelta) for kind in types)


def _no_number(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_no_number(one) for one in value]
    if isinstance(value, dict):
        return {key: _no_number(one) for key, one in value.items()}
    return str(value).lower() if isinstance(value, bool) else value


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, text that can be written down, numbers that are numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _a_truth_is_no_number(cls, data: Any) -> Any:
        # pydantic takes true for 1. As text it is refused, as it is on the command line.
        if not isinstance(data, dict):
            return data
        return {name: _no_number(value) if _is_number(cls, name) else value for name, value in data.items()}

    @model_validator(mode="after")
    def _texts_can_be_written(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            for text in value if isinstance(value, tuple | dict) else [value]:
                if not isinstance(text, str | Path):
                    continue
                try:
                    str(text).encode()
                except UnicodeEncodeError:
                    raise ValueError(f"{name} holds what is no text in UTF-8: {str(text)[:80]!a}") from None
                if "\0" in str(text):
                    raise ValueError(f"{name} holds a zero byte: {str(text)[:80]!a}")
                if isinstance(text, Path):
                    try:
                        check_location(str(text))
                    except ValueError as error:
                        raise ValueError(f"{name}: {error}") from None
        return self


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Every dotted key that a person may set, and whether a resumed run may change it. Keys of a union come once a type."""
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        yield prefix + name, isinstance(extra, dict) and bool(extra.get("free_to_change"))
        for inner in member_types(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from keys(inner, f"{prefix}{name}.")


def member_types(annotation: Any) -> list[Any]:
    """The types that a union or a container is made of."""
    arguments = get_args(annotation)
    return [member for argument in arguments for member in member_types(argument)] if arguments else [annotation]
