"""Student responses regenerated while the student trains."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vcrd_ray.config.base import FREE_TO_CHANGE, ROUNDING_WORDS
from vcrd_ray.config.models import EnginePool


class RefreshSection(EnginePool):
    """A pool of actors that hold the student as it was some updates ago and write the responses that it learns from next.

    An update u learns from responses of the version published after max(0, floor((u - ahead) / every) * every) updates,
    whatever the timing: no response is older than every + ahead - 1 updates, and none is thrown away. Version 0, the
    student before training, has its responses in the rollouts directory.
    """

    every: int | Literal["epoch"] = Field(
        default=0,
        description="Updates from one version of the student that writes responses to the next; epoch: one version a pass"
        " over the pairs; 0: responses stay those of the rollouts directory",
    )
    ahead: int = Field(
        default=1,
        ge=0,
        description="Updates that writing responses runs ahead of learning from them; 0: each update waits for responses of"
        " the student as it is",
    )
    share: float | Literal["decreasing", "increasing"] = Field(
        default=1.0,
        description="Probability that a student response is written anew, else the pair's last one is used again; decreasing:"
        " the share of updates still to come (DistiLLM's replay buffer), increasing: that of updates done",
    )
    sync: Literal["adapter", "merged"] = Field(
        default="adapter",
        description="What a version holds with distill.lora: the adapter alone, or the model with the adapter merged into it",
    )
    sync_timeout_s: float = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=300,
        gt=0,
        description="Longest time an actor may take to load a version and answer its canary",
    )
    canary_tolerance: float | None = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=None,
        gt=0,
        description="Largest difference, in nats, of a canary token's log-probability between trainer and rollout actor;"
        f" none: {ROUNDING_WORDS}",
    )

    @property
    def on(self) -> bool:
        """Whether responses are regenerated at all."""
        return self.every != 0

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if isinstance(self.every, int) and self.every < 0:
            raise ValueError(f"every {self.every} must be epoch, or at least 0")
        if isinstance(self.share, float | int) and not 0 < self.share <= 1:
            raise ValueError(f"share {self.share:g} must be above 0 and at most 1; set every to 0 for no new responses")
        return self
