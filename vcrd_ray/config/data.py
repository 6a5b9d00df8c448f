"""Where problems come from and how responses are sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from vcrd_ray.config.base import Section


class TinyPrompts(Section):
    """Problems of the embedded tiny world, made on the fly."""

    type: Literal["tiny"] = "tiny"
    seed: int = Field(default=1, ge=0, description="Seed of the problem generator")
    start: int = Field(default=0, ge=0, description="Index of the first problem")
    count: int = Field(default=1000, ge=1, description="Number of problems")


class JsonlPrompts(Section):
    """Problems read from a JSON Lines file."""

    type: Literal["jsonl"] = "jsonl"
    path: Path = Field(description="File with one JSON object a line")
    question_key: str = Field(default="question", description="Key of the problem text")
    answer_key: str | None = Field(default="answer", description="Key of the gold answer or solution; none: no answers")
    start: int = Field(default=0, ge=0, description="Rows to pass over")
    count: int | None = Field(default=None, ge=1, description="Rows to read; none: all")
    shuffle_seed: int | None = Field(
        default=None, ge=0, description="Shuffle the rows with this seed before start and count; none: as they stand"
    )
    max_reject_share: float = Field(
        default=0.01, ge=0, le=1, description="Stop when more than this share of the rows is malformed"
    )


Prompts = Annotated[TinyPrompts | JsonlPrompts, Field(discriminator="type")]


class SamplingSection(Section):
    """How responses are sampled."""

    temperature: float = Field(default=0.8, ge=0, description="0 is greedy")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus")
    max_new_tokens: int = Field(default=1024, ge=1, description="Longest response")
