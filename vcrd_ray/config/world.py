"""The tiny world that needs no download."""

from __future__ import annotations

from pydantic import Field, model_validator

from vcrd_ray.config.base import Section

NUM_WAYS = 4
"""Ways to say a step that the tiny world knows."""


class WorldConfig(Section):
    """Which problems are drawn. The shipped checkpoints belong to the defaults."""

    num_ways: int = Field(default=NUM_WAYS, ge=1, le=NUM_WAYS, description="Ways in which a step may be said.")
    min_steps: int = Field(default=2, ge=1, le=6, description="Fewest steps of a problem.")
    max_steps: int = Field(default=4, ge=1, le=6, description="Most steps of a problem.")
    max_number: int = Field(default=60, ge=10, le=999, description="No number in a problem or its solution is larger.")
    max_change: int = Field(default=9, ge=1, le=99, description="Largest gain or loss of one step.")
    share_two_people: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="Share of problems with two people, whose steps may be mixed, at 3+ steps.",
    )

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> WorldConfig:
        if self.max_steps < self.min_steps:
            raise ValueError(f"max_steps={self.max_steps} is below min_steps={self.min_steps}")
        if self.max_change >= self.max_number:
            raise ValueError(f"max_change={self.max_change} must be below max_number={self.max_number}")
        return self
