"""Everything a person may set, one frozen class a noun. Knows nothing of torch or Ray, so that `--help` answers at once.

Each default stands here and nowhere else. A key that is not listed is refused.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from vcrd_ray.config.base import FREE_TO_CHANGE, Section
from vcrd_ray.config.data import PromptSection, TinyPrompts
from vcrd_ray.config.evaluate import EvaluateSection
from vcrd_ray.config.models import (
    Judge,
    ModelJudge,
    OracleJudgeSection,
    StudentSection,
    TeacherSection,
    ValueHeadJudgeSection,
)
from vcrd_ray.config.objective import DivergenceSection, Jsd, SkewedReverseKL
from vcrd_ray.config.plan import PlanSection
from vcrd_ray.config.run import ClusterSection, RunSection
from vcrd_ray.config.select import SelectSection
from vcrd_ray.config.stages import DistillSection, RolloutsSection, SftSection
from vcrd_ray.config.world import WorldConfig

__all__ = ["Config"]


class Config(Section):
    """A whole run. Every job reads the sections it needs, so that one file describes all stages."""

    run: RunSection = RunSection()
    cluster: ClusterSection = Field(default=ClusterSection(), json_schema_extra=FREE_TO_CHANGE)
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
        return self

    @model_validator(mode="after")
    def _signals_can_be_had(self) -> Self:
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
        of_steps = isinstance(self.judge, ModelJudge) and self.judge.scores == "step"
        if objective.needs_judge and of_steps and not of_own_tokens:
            raise ValueError(
                f"judge.type {self.judge.type} scores whole steps, so it cannot compare two next tokens, as weighting"
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
