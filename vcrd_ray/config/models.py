"""The three models, and what each runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vcrd_ray.config.base import FREE_TO_CHANGE, ROUNDING, ROUNDING_WORDS, DType, Location, Section


class LoraSection(Section):
    """Low-rank adapters on all attention and MLP projections."""

    r: int = Field(default=16, ge=1, description="Rank")
    alpha: int = Field(default=128, ge=1, description="Scale numerator: the update is alpha/r B A")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Dropout before A")


class StudentSection(Section):
    """The model that learns, and the ranks that train it."""

    path: Location = Field(default="tiny:student-base", description="Checkpoint directory, hub name or tiny:NAME")
    dtype: DType = Field(default="float32", description="Parameter and activation type")
    export_dtype: DType | None = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=None,
        description="Type of the exported weights; none: student.dtype. bfloat16 rounds away a part of what adapters learnt,"
        " float32 keeps all of it",
    )
    gradient_checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass")
    ranks: int = Field(json_schema_extra=FREE_TO_CHANGE, default=1, ge=1, description="Training processes")
    min_ranks: int | None = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=None,
        ge=1,
        description="Train with as few while there is no room for student.ranks (zero_stage 0); results then differ by"
        " rounding and dropout masks. None: always student.ranks",
    )
    gpus_per_rank: float = Field(default=0, ge=0, description="GPUs of each rank")
    zero_stage: int = Field(default=0, ge=0, le=3, description="DeepSpeed ZeRO stage")
    threads: int = Field(default=1, ge=1, description="CPU threads of each rank")
    max_failures: int = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=3,
        ge=0,
        description="Restarts of the group from its last checkpoint, with no new one between them, before giving up",
    )

    @property
    def fewest_ranks(self) -> int:
        """Ranks that the group may train with."""
        return self.ranks if self.min_ranks is None else self.min_ranks

    @model_validator(mode="after")
    def _may_change_its_size(self) -> Self:
        if self.fewest_ranks > self.ranks:
            raise ValueError(f"student.min_ranks {self.min_ranks} is more than student.ranks {self.ranks}")
        if self.fewest_ranks < self.ranks and self.zero_stage > 0:
            raise ValueError(
                f"student.zero_stage {self.zero_stage} splits its state over a fixed number of ranks: set it to 0, or remove"
                " student.min_ranks"
            )
        return self


class ActorPool(Section):
    """Actors that hold one model each, and what each runs on."""

    replicas: int = Field(json_schema_extra=FREE_TO_CHANGE, default=1, ge=1, description="Actors in the pool")
    min_replicas: int | None = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=None,
        ge=1,
        description="Actors that distillation begins with, the others join as nodes for them come; none: all of them",
    )
    gpus_per_replica: float = Field(default=0, ge=0, description="GPUs of each actor")
    threads: int = Field(default=1, ge=1, description="CPU threads of each actor")

    @model_validator(mode="after")
    def _begins_with_what_there_is(self) -> Self:
        if self.min_replicas is not None and self.min_replicas > self.replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than replicas {self.replicas}: lower it")
        return self


class VllmSection(Section):
    """What a vLLM engine is started with."""

    tensor_parallel: int = Field(
        default=1, ge=1, description="GPUs that share one engine; gpus_per_replica must be as many"
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="Share of a GPU's memory; less where two engines share the GPU"
    )
    max_model_len: int | None = Field(
        default=None, ge=2, description="Longest prompt plus response; none: the model's positions"
    )
    max_num_batched_tokens: int | None = Field(
        default=None, ge=1, description="Tokens of one pass of the engine; none: vLLM's choice"
    )
    enforce_eager: bool = Field(
        default=False, description="No compilation and no CUDA graphs: faster start, slower passes"
    )
    kv_cache_gib: int = Field(default=1, ge=1, description="Key-value cache on a CPU, GiB")


class EnginePool(ActorPool):
    """Actors that hold one engine each."""

    engine: Literal["hf", "vllm"] = Field(default="hf", description="What runs the model: transformers, or vLLM")
    vllm: VllmSection = VllmSection()
    max_batch_tokens: int = Field(
        default=131072,
        ge=1,
        description="Tokens, padding and longest responses included, that transformers generates at once; vLLM has its own",
    )

    @model_validator(mode="after")
    def _engine_fits(self) -> Self:
        gpus = self.vllm.tensor_parallel
        if self.engine == "vllm" and gpus > 1 and self.gpus_per_replica != gpus:
            raise ValueError(
                f"vllm.tensor_parallel {gpus} needs gpus_per_replica {gpus}, not {self.gpus_per_replica:g}"
            )
        return self


class TeacherSection(EnginePool):
    """The model that is imitated, and the pool of actors that hosts it, makes rollouts and evaluates."""

    path: Location = Field(default="tiny:teacher", description="Checkpoint directory, hub name or tiny:NAME")
    dtype: DType = Field(default="float32", description="Parameter and activation type")
    transport: Literal["hidden", "top_k", "logits"] = Field(
        default="hidden",
        description="What of the teacher's distribution travels: final hidden states (exact), its top_k tokens and the mass"
        " of all others together (biased), or all logits (exact and large, for debugging)",
    )
    top_k: int = Field(default=512, ge=1, description="Tokens of a position with transport top_k")


class JudgeCacheSection(Section):
    """Scores that depend on no student weights, kept on disk across epochs, runs and methods."""

    path: Path | None = Field(
        default=None, description="Directory with a file of each host; none: judge-cache in the run directory"
    )
    max_gib: float = Field(
        default=2.0,
        gt=0,
        description="Scores kept in a host's file, the least recently used go; the file is up to twice as large",
    )


class JudgePool(ActorPool):
    """What every judge has: its pool and the bounds on what it may get wrong."""

    calibration: Path | None = Field(
        default=None,
        description="calibration.json of jobs.calibrate: scores are mapped to measured shares of right answers",
    )
    cache: JudgeCacheSection | None = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=JudgeCacheSection(),
        description="Keep scores of student prefixes; null: judge them in every epoch",
    )
    max_invalid_share: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Stop when more than this share of an update's judged rows is NaN, infinite or missing",
    )
    max_crashes: int = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=2,
        ge=1,
        description="A request that this many judge processes died of is quarantined: its tokens get weight 1",
    )
    max_set_aside: int = Field(
        json_schema_extra=FREE_TO_CHANGE,
        default=10,
        ge=0,
        description="Stop when a rank has more quarantined requests than this: the judge dies of too much",
    )
    merge_requests: int = Field(
        default=1,
        ge=1,
        description="Requests of several ranks that may share one pass of the judge. 1: results are the same bit for bit in"
        " every run; more: they may differ by rounding, because who shares a pass depends on timing",
    )

    @model_validator(mode="after")
    def _crashes_must_be_attributable(self) -> JudgePool:
        if self.merge_requests > 1 and self.max_crashes < 2:
            raise ValueError(
                "judge.max_crashes 1 with judge.merge_requests above 1 would quarantine every request of a pass for one"
                " that is bad: set max_crashes to 2, so that each is tried alone first"
            )
        return self


class ModelJudge(JudgePool):
    """What every judge that is a model has."""

    scores: ClassVar[Literal["token", "step"]] = "token"
    """Whether it can score any next token, or whole steps only."""

    path: Location = Field(description="Checkpoint directory, hub name or tiny:NAME")
    dtype: DType = Field(default="float32", description="Type of the backbone; the head is always float32")
    max_batch_tokens: int = Field(default=16384, ge=1, description="Padded tokens of one forward at most")
    self_check_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="Largest logit difference of packed and separate scoring on the first batch;"
        f" none: {ROUNDING_WORDS}",
    )

    @property
    def tolerance(self) -> float:
        """The bound of the self-check."""
        return ROUNDING[self.dtype] if self.self_check_tolerance is None else self.self_check_tolerance


class PackedJudge(ModelJudge):
    """A judge whose proposals are branches of one packed pass."""

    attention: Literal["auto", "dense", "flex", "two_stream"] = Field(
        default="auto",
        description="How packed proposals attend: one dense mask, flex attention, or causal attention twice; auto: flex on a"
        " GPU, elsewhere by how many proposals differ",
    )

    @model_validator(mode="after")
    def _attention_runs(self) -> Self:
        if self.attention == "two_stream" and self.gpus_per_replica and self.dtype == "float32":
            raise ValueError(
                "judge.attention two_stream on a GPU needs judge.dtype bfloat16; use dense or flex for float32"
            )
        return self


class ValueHeadJudgeSection(PackedJudge):
    """A process reward model with a linear value head, as Skywork-o1-Open-PRM: read at the token itself."""

    type: Literal["value_head"] = "value_head"
    path: Location = Field(default="tiny:prm", description="Checkpoint directory, hub name or tiny:NAME")


class QwenPrmJudgeSection(PackedJudge):
    """A process reward model with a two-label head, as Qwen2.5-Math-PRM: read at a separator behind the token."""

    type: Literal["qwen_prm"] = "qwen_prm"
    separator: str = Field(default="<extra_0>", description="Token of the judge at which it is read")
    system: str = Field(
        default="Please reason step by step, and put your final answer within \\boxed{}.",
        description="System message of its prompt",
    )


class ImplicitJudgeSection(ModelJudge):
    """beta times the log-ratio of two language models (PRIME): every token scored by two passes, no branches."""

    type: Literal["implicit"] = "implicit"
    reference: Location = Field(description="The model that `path` was trained from: directory or hub name")
    beta: float = Field(default=0.05, gt=0, description="Scale of the log-ratio")


class StepTagsJudgeSection(ModelJudge):
    """A language model that writes a verdict behind each step, as Math-Shepherd or RLHFlow: whole steps only."""

    scores: ClassVar[Literal["token", "step"]] = "step"

    type: Literal["step_tags"] = "step_tags"
    template: Literal["math_shepherd", "rlhflow"] = Field(description="Prompt format it was trained on")
    good: str = Field(default="+", description="Token of a good step")
    bad: str = Field(default="-", description="Token of a bad step")
    step_tag: str = Field(default="ки", description="Token behind each step at which Math-Shepherd is read")


class OracleJudgeSection(JudgePool):
    """A judge that knows the tiny world's rules: valid continuations score high, all others low."""

    type: Literal["oracle"] = "oracle"
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Score of a valid token; an invalid one gets 1 minus it"
    )


Judge = Annotated[
    ValueHeadJudgeSection | QwenPrmJudgeSection | ImplicitJudgeSection | StepTagsJudgeSection | OracleJudgeSection,
    Field(discriminator="type"),
]
