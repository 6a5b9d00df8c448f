"""The three models, and what each runs on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vcrd_ray.config.base import DType, Section


class LoraSection(Section):
    """Low-rank adapters on all attention and MLP projections."""

    r: int = Field(default=16, ge=1, description="Rank")
    alpha: int = Field(default=128, ge=1, description="Scale numerator: the update is alpha/r B A")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before A")


class StudentSection(Section):
    """The model that learns, and the ranks that train it."""

    path: str = Field(default="tiny:student-base", description="Checkpoint directory, hub name or tiny:NAME")
    dtype: DType = Field(default="float32", description="Parameter and activation type")
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass")
    ranks: int = Field(default=1, ge=1, description="Training processes")
    gpus_per_rank: float = Field(default=0, ge=0, description="GPUs of each rank")
    zero_stage: Literal[0, 1, 2, 3] = Field(default=0, description="DeepSpeed ZeRO stage")
    threads: int = Field(default=1, ge=1, description="CPU threads of each rank")
    max_failures: int = Field(
        default=3, ge=0, description="Restarts of the group from its last checkpoint before giving up"
    )


class TeacherSection(Section):
    """The model that is imitated, and the pool of actors that hosts it."""

    path: str = Field(default="tiny:teacher", description="Checkpoint directory, hub name or tiny:NAME")
    dtype: DType = Field(default="float32", description="Parameter and activation type")
    engine: Literal["hf"] = Field(default="hf", description="What runs the model")
    transport: Literal["hidden", "top_k", "logits"] = Field(
        default="hidden",
        description="What of the teacher's distribution travels: final hidden states (exact), its top_k tokens and the mass"
        " of all others together (biased), or all logits (exact and large, for debugging)",
    )
    top_k: int = Field(default=512, ge=1, description="Tokens of a position with transport top_k")
    replicas: int = Field(default=1, ge=1, description="Actors in the pool")
    gpus_per_replica: float = Field(default=0, ge=0, description="GPUs of each actor")
    threads: int = Field(default=1, ge=1, description="CPU threads of each actor")


class JudgePool(Section):
    """What every judge has: its pool and the bounds on what it may get wrong."""

    replicas: int = Field(default=1, ge=1, description="Actors in the pool")
    gpus_per_replica: float = Field(default=0, ge=0, description="GPUs of each actor")
    threads: int = Field(default=1, ge=1, description="CPU threads of each actor")
    max_invalid_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Stop when more than this share of an update's judged rows is NaN or infinite",
    )


class ValueHeadJudgeSection(JudgePool):
    """A process reward model with a value head, as Skywork-o1-Open-PRM."""

    type: Literal["value_head"] = "value_head"
    path: str = Field(default="tiny:prm", description="Checkpoint directory, hub name or tiny:NAME")
    dtype: DType = Field(default="float32", description="Type of the backbone; the head is always float32")
    max_batch_tokens: int = Field(default=16384, ge=1, description="Padded tokens of one forward at most")
    self_check_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="Largest logit difference of packed and separate scoring on the first batch; none: 1e-3, bfloat16 0.2",
    )

    @property
    def tolerance(self) -> float:
        """The bound of the self-check: what rounding alone was seen to do in this type, with room."""
        default = 0.2 if self.dtype == "bfloat16" else 1e-3
        return default if self.self_check_tolerance is None else self.self_check_tolerance


class OracleJudgeSection(JudgePool):
    """A judge that knows the tiny world's rules: valid continuations score high, all others low."""

    type: Literal["oracle"] = "oracle"
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Score of a valid token; an invalid one gets 1 minus it"
    )


Judge = Annotated[ValueHeadJudgeSection | OracleJudgeSection, Field(discriminator="type")]
