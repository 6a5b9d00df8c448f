"""What all sections share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field
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


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
