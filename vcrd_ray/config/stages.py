"""The stages of the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from vcrd_ray.config.base import FREE_TO_CHANGE, Location, Section
from vcrd_ray.config.data import Prompts, SamplingSection, TinyPrompts
from vcrd_ray.config.models import LoraSection
from vcrd_ray.config.objective import ObjectiveSection
from vcrd_ray.config.refresh import RefreshSection


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


class OptimSection(Section):
    """AdamW with linear warm-up and cosine decay to zero."""

    lr: float = Field(default=5e-5, gt=0, description="Peak learning rate")
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="Share of the updates that warm up")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="Adam's moment decay rates")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradient clipping by global norm")


class TrainingSection(Section):
    """How many updates, of what size, and what is kept of them."""

    batch_size: int = Field(
        default=128, ge=1, description="Examples an optimizer update, over all ranks and micro-batches"
    )
    micro_batch_size: int = Field(default=8, ge=1, description="Examples a forward pass on one rank")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the data")
    num_updates: int | None = Field(default=None, ge=1, description="Number of updates; overrides epochs")
    optim: OptimSection = OptimSection()
    checkpoint_every: int = Field(
        json_schema_extra=FREE_TO_CHANGE, default=50, ge=1, description="Updates between checkpoints"
    )
    keep_checkpoints: int = Field(
        json_schema_extra=FREE_TO_CHANGE, default=2, ge=1, description="Complete checkpoints that stay on disk"
    )
    stop_after: int | None = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=None,
        ge=1,
        description="Stop with a checkpoint once this many updates are done; the run can be resumed",
    )

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is no multiple of micro_batch_size {self.micro_batch_size};"
                " choose a micro_batch_size that divides it"
            )
        return self


class SftSection(TrainingSection):
    """Supervised fine-tuning on gold solutions before distillation."""

    skip: bool = Field(default=False, description="Begin distillation with the student as it is")
    prompts: Prompts = TinyPrompts(seed=1, count=1200)
    max_length: int = Field(
        default=2048, ge=2, description="Longest prompt plus response; longer examples are rejected"
    )
    packing: bool = Field(
        default=False,
        description="Lay the examples of a micro-batch end to end in rows of max_length that do not see each other",
    )


class RolloutsSection(Section):
    """Responses of each model for each prompt: made once, and the student's regenerated while it trains if asked for."""

    prompts: Prompts = TinyPrompts(seed=2, count=2000)
    sampling: SamplingSection = SamplingSection()
    samples: int = Field(default=1, ge=1, description="Pairs a prompt: responses of each model")
    max_prompt_length: int = Field(default=512, ge=1, description="Longer prompts are rejected and counted")
    block_size: int = Field(
        default=256, ge=1, description="Prompts generated and written together; the unit of restart"
    )
    batch_size: int = Field(default=256, ge=1, description="Responses made in one generate call")
    refresh: RefreshSection = RefreshSection()

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"samples {self.samples} at temperature 0 are the same response {self.samples} times: set"
                " sampling.temperature above 0, or samples to 1"
            )
        return self


class WatchSection(Section):
    """Held-out problems that rollout actors (rollouts.refresh) answer while the student trains."""

    every: int = Field(default=0, ge=0, description="Updates between two evaluations; 0: none")
    prompts: Prompts = TinyPrompts(seed=5, count=200)
    sampling: SamplingSection = SamplingSection(temperature=0.0, top_p=1.0)


class DistillSection(TrainingSection):
    """Validity-calibrated distillation on rollout pairs."""

    rollouts: Annotated[Location, BeforeValidator(_as_text)] | None = Field(
        default=None, description="Rollouts, a directory or a folder in storage (s3://...); none: those of this run"
    )
    lora: LoraSection | None = Field(default=LoraSection(), description="Adapters; none: full fine-tuning")
    train_head: bool = Field(
        default=False,
        description="Train lm_head too, and embeddings tied to it (lora null only); costs a second pass over logits",
    )
    objective: ObjectiveSection = ObjectiveSection()
    watch: WatchSection = WatchSection()
    max_length: int = Field(default=1024, ge=2, description="Longest prompt plus response; longer pairs are rejected")
    chunk_rows: int = Field(default=256, ge=1, description="Rows whose logits exist at a time")
    overlap: bool = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=True,
        description="Judge one micro-batch while the next one goes forward; off: one after another",
    )
    prefetch: int = Field(
        json_schema_extra=FREE_TO_CHANGE, default=2, ge=1, description="Teacher requests in flight ahead of the forward"
    )
    decisions_per_update: int = Field(
        default=64, ge=0, description="Judged decisions kept for the report, sampled each update"
    )
