"""Everything a person may set, one frozen class a noun. Knows nothing of torch or Ray, so that `--help` answers at once.

Each default stands here and nowhere else. A key that is not listed is refused.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import AwareDatetime, Field, field_validator, model_validator

from vcrd_ray.config.base import DType, Section
from vcrd_ray.config.data import (
    HfPrompts,
    JsonlPrompts,
    MixPrompts,
    MixSource,
    ParquetPrompts,
    Prompts,
    PromptSection,
    SamplingSection,
    TinyPrompts,
)
from vcrd_ray.config.evaluate import (
    CodeSection,
    CodeSetName,
    EvaluateSection,
    InstructSuiteSection,
    MathSection,
    OwnInstructSet,
    OwnMathSet,
)
from vcrd_ray.config.models import (
    ActorPool,
    ImplicitJudgeSection,
    Judge,
    JudgeCacheSection,
    JudgePool,
    LoraSection,
    ModelJudge,
    OracleJudgeSection,
    PackedJudge,
    QwenPrmJudgeSection,
    StepTagsJudgeSection,
    StudentSection,
    TeacherSection,
    ValueHeadJudgeSection,
    VllmSection,
)
from vcrd_ray.config.objective import (
    AdaptiveKL,
    AdaptiveMixing,
    AlphaBeta,
    Amid,
    CompositeWeighting,
    CrossEntropy,
    DifferenceWeighting,
    DivergenceSection,
    ForwardKL,
    InverseRatioWeighting,
    Jsd,
    ObjectiveSection,
    RatioWeighting,
    ReverseKL,
    Signal,
    SkewedKL,
    SkewedReverseKL,
    StudentScoreWeighting,
    Taid,
    TeacherProbWeighting,
    UniformWeighting,
    Weighting,
)
from vcrd_ray.config.plan import GpuKind, HardwareSection, PlanSection, ShapeSection
from vcrd_ray.config.refresh import RefreshSection
from vcrd_ray.config.select import SelectSection
from vcrd_ray.config.stages import (
    DistillSection,
    OptimSection,
    RolloutsSection,
    SftSection,
    TrainingSection,
    WatchSection,
)
from vcrd_ray.tiny.world import WorldConfig

__all__ = [
    "ActorPool",
    "AdaptiveKL",
    "AdaptiveMixing",
    "AlphaBeta",
    "Amid",
    "ClusterSection",
    "CodeSection",
    "CodeSetName",
    "CompositeWeighting",
    "Config",
    "CrossEntropy",
    "DType",
    "DifferenceWeighting",
    "DistillSection",
    "DivergenceSection",
    "EvaluateSection",
    "ForwardKL",
    "GpuKind",
    "HardwareSection",
    "HfPrompts",
    "ImplicitJudgeSection",
    "InstructSuiteSection",
    "InverseRatioWeighting",
    "Jsd",
    "JsonlPrompts",
    "Judge",
    "JudgeCacheSection",
    "JudgePool",
    "LoraSection",
    "MathSection",
    "MixPrompts",
    "MixSource",
    "ModelJudge",
    "ObjectiveSection",
    "OptimSection",
    "OracleJudgeSection",
    "OwnInstructSet",
    "OwnMathSet",
    "PackedJudge",
    "ParquetPrompts",
    "PlanSection",
    "PromptSection",
    "Prompts",
    "QwenPrmJudgeSection",
    "RatioWeighting",
    "RefreshSection",
    "ReverseKL",
    "RolloutsSection",
    "RunSection",
    "SamplingSection",
    "Section",
    "SelectSection",
    "SftSection",
    "ShapeSection",
    "Signal",
    "SkewedKL",
    "SkewedReverseKL",
    "StepTagsJudgeSection",
    "StudentScoreWeighting",
    "StudentSection",
    "Taid",
    "TeacherProbWeighting",
    "TeacherSection",
    "TinyPrompts",
    "TrainingSection",
    "UniformWeighting",
    "ValueHeadJudgeSection",
    "VllmSection",
    "WatchSection",
    "Weighting",
]


Resume = Literal["auto", "never", "must"]
"""What is done with a run that is there already."""


TrackerName = Literal["mlflow", "wandb"]


class RunSection(Section):
    """Where a run lives and which randomness it has."""

    dir: Path = Field(
        default=Path("runs/default"), description="Run directory; every job makes a folder of its own in it"
    )
    storage: str | None = Field(
        default=None,
        description="Folder in object storage (s3://BUCKET/NAME, gs://BUCKET/NAME) or file:///SHARED/DISK that keeps the run;"
        " run.dir is then a working directory of each node. None: run.dir is on storage that all nodes share",
    )
    seed: int = Field(default=0, ge=0, description="Seed of data order, proposals, rollouts and dropout")
    resume: Resume = Field(
        default="auto",
        description="auto: go on with the run that is there, or begin; never: refuse a directory with a run; must: refuse one"
        " without",
    )
    trackers: tuple[TrackerName, ...] = Field(
        default=(),
        description="Where training metrics go beside JSON Lines and TensorBoard: mlflow, wandb (extra: track)",
    )
    project: str = Field(default="vcrd_ray", min_length=1, description="What trackers call the project or experiment")
    must_save_by: timedelta | AwareDatetime | None = Field(
        default=None,
        union_mode="left_to_right",
        description="A training saves and leaves (exit code 75) before this time: how long after the job's start (03:45:00),"
        " or when (2030-01-31T18:00:00Z)",
    )

    @field_validator("storage")
    @classmethod
    def _storage_is_a_folder(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        parts = urlsplit(uri)
        if parts.scheme not in ("s3", "gs", "gcs", "file", "hdfs", "abfs", "abfss"):
            raise ValueError(
                f"run.storage {uri}: not a folder in storage; write s3://BUCKET/NAME, or file:///DIRECTORY"
            )
        if parts.username or parts.password:
            raise ValueError(
                "run.storage must hold no credentials, because configs are logged: set AWS_ACCESS_KEY_ID and its like in the"
                " environment, or give the nodes a role"
            )
        return uri

    def deadline(self, started: float) -> float | None:
        """When a training must have saved, in seconds since the epoch, for a job that started then."""
        match self.must_save_by:
            case timedelta():
                return started + self.must_save_by.total_seconds()
            case datetime():
                return self.must_save_by.timestamp()
        return None


class ClusterSection(Section):
    """The Ray cluster that the actors run on."""

    address: str | None = Field(
        default=None,
        description="Address of a running cluster; none: RAY_ADDRESS where set (as in a submitted job), else start one here",
    )
    pools: Literal["shared", "separate"] = Field(
        default="shared",
        description="separate: each role runs only on nodes that offer the custom resource student, teacher, judge or rollout",
    )
    dashboard: bool = Field(default=False, description="Start the dashboard with a local cluster")
    timeline: bool = Field(
        default=False, description="Leave timeline.json of a distillation, for chrome://tracing or ui.perfetto.dev"
    )
    object_store_gib: float = Field(default=0.5, gt=0.07, description="Object store of a local cluster, GiB")
    start_timeout_s: float = Field(default=600, gt=0, description="Longest wait for actors to be placed and ready")
    request_timeout_s: float = Field(default=600, gt=0, description="Longest wait for one teacher or judge answer")


class Config(Section):
    """A whole run. Every job reads the sections it needs, so that one file describes all stages."""

    run: RunSection = RunSection()
    cluster: ClusterSection = ClusterSection()
    world: WorldConfig = WorldConfig()
    student: StudentSection = StudentSection()
    teacher: TeacherSection = TeacherSection()
    judge: Judge = ValueHeadJudgeSection()
    prompt: PromptSection = PromptSection()
    sft: SftSection = SftSection()
    rollouts: RolloutsSection = RolloutsSection()
    select: SelectSection = SelectSection()
    distill: DistillSection = DistillSection()
    evaluate: EvaluateSection = EvaluateSection()
    plan: PlanSection = PlanSection()

    @property
    def needs_rollout_actors(self) -> bool:
        """Whether versions of the student are published during distillation."""
        return self.rollouts.refresh.on or self.distill.watch.every > 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for name, section in (("sft", self.sft), ("distill", self.distill)):
            for ranks in range(self.student.fewest_ranks, self.student.ranks + 1):
                if section.batch_size % (section.micro_batch_size * ranks):
                    raise ValueError(
                        f"{name}.batch_size {section.batch_size} is no multiple of {name}.micro_batch_size x student.ranks"
                        f" = {section.micro_batch_size} x {ranks}; change one of the three"
                        + (" (or student.min_ranks)" if self.student.min_ranks else "")
                    )
        if self.student.min_ranks is not None and self.rollouts.refresh.on:
            raise ValueError(
                "rollouts.refresh orders responses for a fixed number of ranks: remove student.min_ranks, or set"
                " rollouts.refresh.every to 0"
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
        if self.teacher.transport == "top_k":
            for term in terms:
                # Where rounding leaves the teacher's tail no mass, a divergence that divides by it is infinite.
                if term.type in ("reverse_kl", "adaptive_kl", "alpha_beta", "amid") or _unskewed(term):
                    raise ValueError(
                        f"{term.type} divides by the teacher's tail, which teacher.transport top_k may round to nothing:"
                        " set teacher.transport to hidden"
                    )
        if self.teacher.transport != "hidden" and any(getattr(term, "adaptive", False) for term in terms):
            raise ValueError("an adaptive skew needs the teacher's hidden states: set teacher.transport to hidden")
        objective = self.distill.objective
        if self.rollouts.refresh.on and objective.lambda_student == 0 and objective.mixing is None:
            raise ValueError(
                "rollouts.refresh writes student responses that nothing learns from, because"
                " distill.objective.lambda_student is 0: set rollouts.refresh.every to 0, or lambda_student above 0"
            )
        # A step's score is known of the trajectory's own steps, not of a token proposed instead.
        of_own_tokens = objective.weighting.type == "student_score" and objective.lambda_teacher == 0
        if objective.needs_judge and isinstance(self.judge, StepTagsJudgeSection) and not of_own_tokens:
            raise ValueError(
                "judge.type step_tags scores whole steps, so it cannot compare two next tokens, as weighting"
                f" {objective.weighting.type} needs: use judge.type value_head or qwen_prm, or weighting teacher_prob;"
                " it can serve weighting student_score with lambda_teacher 0, and jobs.calibrate"
            )
        if isinstance(self.judge, OracleJudgeSection) and not isinstance(self.rollouts.prompts, TinyPrompts):
            raise ValueError(
                "judge.type oracle knows only the tiny world: set rollouts.prompts.type to tiny, or use value_head"
            )
        return self


def _unskewed(term: DivergenceSection) -> bool:
    """Whether a divergence is the plain reverse KL under another name."""
    match term:
        case SkewedReverseKL():
            return term.alpha == 0
        case Jsd():
            return term.beta == 1
    return False
