"""Everything a person may set, one frozen class a noun. Knows nothing of torch or Ray, so that `--help` answers at once.

Each default stands here and nowhere else. A key that is not listed is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vcrd_ray.tiny.world import WorldConfig

DType = Literal["float32", "bfloat16"]


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSection(Section):
    """Where a run lives and which randomness it has."""

    dir: Path = Field(
        default=Path("runs/default"), description="Run directory; every job makes a folder of its own in it"
    )
    seed: int = Field(default=0, ge=0, description="Seed of data order, proposals, rollouts and dropout")


class ClusterSection(Section):
    """The Ray cluster that the actors run on."""

    address: str | None = Field(
        default=None,
        description="Address of a running cluster; none: RAY_ADDRESS where set (as in a submitted job), else start one here",
    )
    pools: Literal["shared", "separate"] = Field(
        default="shared",
        description="separate: each role runs only on nodes that offer the custom resource student, teacher or judge",
    )
    dashboard: bool = Field(default=False, description="Start the dashboard with a local cluster")
    object_store_gib: float = Field(default=0.5, gt=0.07, description="Object store of a local cluster, GiB")
    start_timeout_s: float = Field(default=600, gt=0, description="Longest wait for actors to be placed and ready")
    request_timeout_s: float = Field(default=600, gt=0, description="Longest wait for one teacher or judge answer")


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
    checkpoint_every: int = Field(default=50, ge=1, description="Updates between checkpoints")
    keep_checkpoints: int = Field(default=2, ge=1, description="Complete checkpoints that stay on disk")
    stop_after: int | None = Field(
        default=None, ge=1, description="Stop with a checkpoint once this many updates are done; the run can be resumed"
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


class SamplingSection(Section):
    """How responses are sampled."""

    temperature: float = Field(default=0.8, ge=0, description="0 is greedy")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus")
    max_new_tokens: int = Field(default=1024, ge=1, description="Longest response")


class RolloutsSection(Section):
    """The offline data stage: one response of each model for each prompt."""

    prompts: Prompts = TinyPrompts(seed=2, count=2000)
    sampling: SamplingSection = SamplingSection()
    max_prompt_length: int = Field(default=512, ge=1, description="Longer prompts are rejected and counted")
    block_size: int = Field(
        default=256, ge=1, description="Prompts generated and written together; the unit of restart"
    )
    batch_size: int = Field(default=256, ge=1, description="Prompts in one generate call")


Signal = Literal["judge", "teacher_probability"]
"""What a rule may need to know of a position: the judge's scores of both proposals; p(argmax q) and sum p^2."""


class RatioWeighting(Section):
    """w = r(c, a^S) / (r(c, a^T) + eps): the paper's rule. w_max 1 switches amplification off."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge"})

    type: Literal["ratio"] = "ratio"
    eps: float = Field(default=1e-8, ge=0, description="Added to the teacher's score")
    w_max: float = Field(default=10.0, gt=0, description="Largest weight; .inf is the paper's unclipped rule")


class InverseRatioWeighting(Section):
    """w = r(c, a^T) / (r(c, a^S) + eps): the order turned round, as a control."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge"})

    type: Literal["inverse_ratio"] = "inverse_ratio"
    eps: float = Field(default=1e-8, ge=0, description="Added to the student's score")
    w_max: float = Field(default=10.0, gt=0, description="Largest weight; .inf leaves it unclipped")


class StudentScoreWeighting(Section):
    """w = r(c, a^S): the student's score alone."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge"})

    type: Literal["student_score"] = "student_score"


class DifferenceWeighting(Section):
    """w = r(c, a^S) - r(c, a^T), as the paper writes it, or shifted to max(0, 1 + difference)."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"judge"})

    type: Literal["difference"] = "difference"
    shifted: bool = Field(
        default=False,
        description="max(0, 1 + r_S - r_T); off: 0 on equal proposals and gradient ascent where the teacher scores higher",
    )


class TeacherProbWeighting(Section):
    """PRM-free: how probable the student's greedy token is to the teacher, over what the teacher expects of itself."""

    needs: ClassVar[frozenset[Signal]] = frozenset({"teacher_probability"})

    type: Literal["teacher_prob"] = "teacher_prob"
    top_k: int = Field(default=128, ge=1, description="Teacher tokens in the collision sum")
    gamma: float = Field(default=0.5, gt=0, description="Exponent of the ratio")
    clamp: float = Field(default=2.0, gt=1, description="Weights stay in [1/clamp, clamp]")
    eps: float = Field(default=1e-8, ge=0, description="Added to the collision sum")


class UniformWeighting(Section):
    """w = 1 everywhere."""

    needs: ClassVar[frozenset[Signal]] = frozenset()

    type: Literal["uniform"] = "uniform"


Weighting = Annotated[
    RatioWeighting
    | InverseRatioWeighting
    | StudentScoreWeighting
    | DifferenceWeighting
    | TeacherProbWeighting
    | UniformWeighting,
    Field(discriminator="type"),
]


class ForwardKL(Section):
    """KL(p || q)."""

    type: Literal["forward_kl"] = "forward_kl"


class ReverseKL(Section):
    """KL(q || p)."""

    type: Literal["reverse_kl"] = "reverse_kl"


class Jsd(Section):
    """beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD); at 0 KL(p || q), at 1 KL(q || p)."""

    type: Literal["jsd"] = "jsd"
    beta: float = Field(default=0.5, ge=0, le=1, description="Weight of the teacher; papers differ in theirs")


class SkewedKL(Section):
    """KL(p || alpha p + (1 - alpha) q)."""

    type: Literal["skewed_kl"] = "skewed_kl"
    alpha: float = Field(default=0.1, ge=0, le=1, description="Skew")
    adaptive: bool = Field(default=False, description="Skew of each sequence by DistiLLM-2's curriculum, at most alpha")


class SkewedReverseKL(Section):
    """KL(q || (1 - alpha) p + alpha q)."""

    type: Literal["skewed_reverse_kl"] = "skewed_reverse_kl"
    alpha: float = Field(default=0.1, ge=0, le=1, description="Skew")
    detach_mixture: bool = Field(
        default=True, description="No gradient through q inside the mixture (DistiLLM-2; DistiLLM has it)"
    )
    adaptive: bool = Field(default=False, description="Skew of each sequence by DistiLLM-2's curriculum, at most alpha")


class AlphaBeta(Section):
    """The alpha-beta divergence (ABKD)."""

    type: Literal["alpha_beta"] = "alpha_beta"
    alpha: float = Field(default=0.2, description="Exponent of the teacher")
    beta: float = Field(default=0.7, description="Exponent of the student")


class AdaptiveKL(Section):
    """Forward and reverse KL, mixed by where the distributions differ (AKL)."""

    type: Literal["adaptive_kl"] = "adaptive_kl"
    head_mass: float = Field(default=0.5, gt=0, le=1, description="Teacher probability that makes the head")


class Taid(Section):
    """Cross-entropy to a target that moves from the student to the teacher as the loss falls (TAID)."""

    type: Literal["taid"] = "taid"
    start: float = Field(default=0.4, ge=0, le=1, description="Share of the teacher in the first update")
    end: float = Field(default=1.0, ge=0, le=1, description="Largest share")
    rate: float = Field(default=5e-4, ge=0, description="Largest step beyond the linear schedule")
    momentum: float = Field(default=0.99, ge=0, lt=1, description="Memory of the loss's relative change")


class Amid(Section):
    """Divergence between one side and an alpha-mixture of both (AMiD)."""

    type: Literal["amid"] = "amid"
    alpha: float = Field(default=0.5, le=1, description="-1: arithmetic mixture, 1: geometric mixture")
    share: float = Field(default=0.5, ge=0, le=1, description="Share of the teacher in the mixture r")
    order: Literal["pr", "qr", "rp", "rq"] = Field(default="pr", description="Arguments of the divergence")
    kind: Literal["kl", "alpha_beta"] = Field(default="alpha_beta", description="Divergence between the two")
    exponents: tuple[float, float] = Field(default=(0.2, 0.7), description="Of the alpha-beta divergence")


class CrossEntropy(Section):
    """-ln q of the rollout's own token: supervised fine-tuning; needs no teacher."""

    type: Literal["cross_entropy"] = "cross_entropy"


DivergenceSection = Annotated[
    ForwardKL | ReverseKL | Jsd | SkewedKL | SkewedReverseKL | AlphaBeta | AdaptiveKL | Taid | Amid | CrossEntropy,
    Field(discriminator="type"),
]


class AdaptiveMixing(Section):
    """DistiLLM's adaptive off-policy data: the teacher's response, or with a growing probability the student's own."""

    validation_pairs: int = Field(default=64, ge=1, description="Pairs kept out of training to watch the loss on")
    start: float = Field(default=0.0, ge=0, le=1, description="First threshold")
    step: float = Field(default=0.1, gt=0, le=1, description="Added whenever the validation loss has risen")
    tolerance: float = Field(default=0.1, ge=0, description="Rise of the validation loss that counts")
    every: int | None = Field(default=None, ge=1, description="Updates between validations; none: an epoch")


class ObjectiveSection(Section):
    """lambda_teacher * D on teacher prefixes + lambda_student * D on student prefixes, each token times its weight."""

    on_teacher: DivergenceSection = SkewedKL()
    on_student: DivergenceSection = SkewedReverseKL()
    lambda_teacher: float = Field(default=1.0, ge=0, description="Strength of the term on teacher prefixes")
    lambda_student: float = Field(default=1.0, ge=0, description="Strength of the term on student prefixes")
    gradual: bool = Field(
        default=False,
        description="DistiLLM-2's curriculum: times (2 - b, b), b = 1 + min(1/2, update / num_updates)",
    )
    mixing: AdaptiveMixing | None = Field(
        default=None, description="One response a pair instead of both: the teacher's, or adaptively the student's"
    )
    weighting: Weighting = RatioWeighting()
    reduction: Literal["sequence_mean", "sum", "global_token_mean"] = Field(
        default="sequence_mean", description="How rows become a loss; no denominator ever contains weights"
    )

    @property
    def needs_judge(self) -> bool:
        """Whether some row's weight comes from the judge."""
        return "judge" in self.weighting.needs

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher's distribution is asked for at any row."""
        terms = ((self.on_teacher, self.lambda_teacher), (self.on_student, self.lambda_student))
        return bool(self.weighting.needs) or any(strength and term.type != "cross_entropy" for term, strength in terms)

    @model_validator(mode="after")
    def _some_term(self) -> Self:
        if self.lambda_teacher == 0 and self.lambda_student == 0:
            raise ValueError("lambda_teacher and lambda_student are both 0: nothing to learn; set one above 0")
        if self.mixing is not None and not (self.lambda_teacher and self.lambda_student):
            raise ValueError(
                "mixing chooses between both kinds of responses: set both lambdas above 0, or mixing to null"
            )
        return self


class DistillSection(TrainingSection):
    """Validity-calibrated distillation on rollout pairs."""

    rollouts: Path | None = Field(default=None, description="Rollouts directory; none: the one in this run directory")
    lora: LoraSection | None = Field(default=LoraSection(), description="Adapters; none: full fine-tuning")
    train_head: bool = Field(
        default=False,
        description="Train lm_head too, and embeddings tied to it (lora null only); costs a second pass over logits",
    )
    objective: ObjectiveSection = ObjectiveSection()
    max_length: int = Field(default=1024, ge=2, description="Longest prompt plus response; longer pairs are rejected")
    chunk_rows: int = Field(default=256, ge=1, description="Rows whose logits exist at a time")
    overlap: bool = Field(
        default=True, description="Judge one micro-batch while the next one goes forward; off: one after another"
    )
    prefetch: int = Field(default=2, ge=1, description="Teacher requests in flight ahead of the forward")
    decisions_per_update: int = Field(
        default=64, ge=0, description="Judged decisions kept for the report, sampled each update"
    )


class EvaluateSection(Section):
    """Greedy pass@1 on held-out problems."""

    model: str | None = Field(default=None, description="Checkpoint to evaluate; none: the student's path")
    prompts: Prompts = TinyPrompts(seed=7, count=1000)
    sampling: SamplingSection = SamplingSection(temperature=0.0, top_p=1.0)
    batch_size: int = Field(default=250, ge=1, description="Prompts in one generate call")
    replicas: int = Field(default=1, ge=1, description="Engine actors")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Level of the Wilson interval")


class Config(Section):
    """A whole run. Every job reads the sections it needs, so that one file describes all stages."""

    run: RunSection = RunSection()
    cluster: ClusterSection = ClusterSection()
    world: WorldConfig = WorldConfig()
    student: StudentSection = StudentSection()
    teacher: TeacherSection = TeacherSection()
    judge: Judge = ValueHeadJudgeSection()
    sft: SftSection = SftSection()
    rollouts: RolloutsSection = RolloutsSection()
    distill: DistillSection = DistillSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, section in (("sft", self.sft), ("distill", self.distill)):
            per_forward = section.micro_batch_size * self.student.ranks
            if section.batch_size % per_forward:
                raise ValueError(
                    f"{name}.batch_size {section.batch_size} is no multiple of {name}.micro_batch_size x student.ranks"
                    f" = {section.micro_batch_size} x {self.student.ranks}; change one of the three"
                )
        if self.distill.train_head and self.distill.lora is not None:
            raise ValueError(
                "distill.train_head needs full fine-tuning: set distill.lora to null, or train_head to false"
            )
        if self.distill.train_head and self.student.zero_stage == 3:
            raise ValueError(
                "distill.train_head does not work with student.zero_stage 3: use stage 2, or freeze the head"
            )
        if self.student.zero_stage == 3 and self.student.ranks > 1 and self.distill.overlap:
            # Measured: with partitioned parameters a forward between another's forward and backward gives wrong gradients.
            raise ValueError(
                "student.zero_stage 3 on several ranks cannot overlap: set distill.overlap false, or use stage 2"
            )
        if self.teacher.transport == "top_k" and "teacher_probability" in self.distill.objective.weighting.needs:
            raise ValueError(
                "weighting teacher_prob needs the teacher's whole distribution, which teacher.transport top_k does not carry:"
                " set teacher.transport to hidden"
            )
        terms = (self.distill.objective.on_teacher, self.distill.objective.on_student)
        if self.teacher.transport != "hidden" and any(getattr(term, "adaptive", False) for term in terms):
            raise ValueError("an adaptive skew needs the teacher's hidden states: set teacher.transport to hidden")
        if isinstance(self.judge, OracleJudgeSection) and not isinstance(self.rollouts.prompts, TinyPrompts):
            raise ValueError(
                "judge.type oracle knows only the tiny world: set rollouts.prompts.type to tiny, or use value_head"
            )
        return self
