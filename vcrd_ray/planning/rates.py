"""Service times of one micro-batch: from floating-point operations at an assumed speed, or from a run that was measured.

Knows no schedule: what overlaps with what is simulate.py's.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcrd_ray.config import Config
from vcrd_ray.config.models import ModelJudge, QwenPrmJudgeSection
from vcrd_ray.config.plan import HardwareSection
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.planning.hardware import flops_per_s
from vcrd_ray.planning.memory import dtype_bytes, num_sequences, payload_bytes, trainable
from vcrd_ray.planning.shapes import ModelShape
from vcrd_ray.planning.simulate import ServiceTimes

_WARM_UP = 3
"""Updates of a measured run that are not looked at, where it has more."""


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The models of a run."""

    student: ModelShape
    teacher: ModelShape
    judge: ModelShape | None
    """None: no judge, or one that is no model."""
    reference: ModelShape | None = None
    """The second model of an implicit judge."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Floating-point operations of one micro-batch of one rank."""

    forward: float
    loss: float
    backward: float
    teacher: float
    judge_side: float
    """Judging one side's responses."""


def work_of(config: Config, shapes: Shapes) -> Work:
    """Operations at the mean lengths of the plan: two a parameter and token forward, two more for each of the gradients."""
    section, run, sequences = config.plan, config.distill, num_sequences(config)
    length = section.prompt_tokens + section.response_tokens
    tokens, rows = sequences * length, sequences * section.response_tokens
    forward = shapes.student.forward_flops(tokens, length / 2)
    if run.lora is not None:
        forward += 2 * shapes.student.adapters(run.lora.r) * tokens
    # Frozen matrices have no gradient of their own: only the one by their inputs is computed.
    backward = forward * (1 if run.lora is not None else 2)
    if config.student.gradient_checkpointing:
        backward += forward
    head, teacher_head = 2 * rows * shapes.student.embedding, 2 * rows * shapes.teacher.embedding
    needs_teacher = run.objective.needs_teacher
    loss = 2 * head + (teacher_head if needs_teacher and config.teacher.transport == "hidden" else 0)
    if run.train_head:
        backward += loss + head
    teacher = shapes.teacher.forward_flops(tokens, length / 2) if needs_teacher else 0.0
    if run.objective.needs_judge:
        # It proposes on student responses.
        teacher += teacher_head * run.micro_batch_size / sequences
    return Work(
        forward=forward,
        loss=loss,
        backward=backward,
        teacher=teacher,
        judge_side=_judge_flops(config, shapes) if run.objective.needs_judge else 0.0,
    )


def _judge_flops(config: Config, shapes: Shapes) -> float:
    if shapes.judge is None:
        return 0.0
    section, pairs = config.plan, config.distill.micro_batch_size
    length = section.prompt_tokens + section.response_tokens
    branches = (1 - section.agreement) * section.response_tokens
    if shapes.reference is not None:
        heads = 2 * pairs * section.response_tokens * (shapes.judge.embedding + shapes.reference.embedding)
        both = (shapes.judge, shapes.reference)
        return heads + sum(shape.forward_flops(pairs * length, length / 2) for shape in both)
    # Qwen's judge reads a separator behind every token and behind every branch.
    separators = section.response_tokens + branches if isinstance(config.judge, QwenPrmJudgeSection) else 0
    tokens = length + branches + separators
    return shapes.judge.forward_flops(pairs * tokens, length / 2)


def assumed_times(config: Config, shapes: Shapes) -> ServiceTimes:
    """Work over speed.

    Raises:
        ConfigError: the plan does not say how fast a role is; names the key.
    """
    work, section, student = work_of(config, shapes), config.plan, config.student
    speed = _speed("student", section.student, gpus=student.gpus_per_rank, threads=student.threads)
    teacher_s = judge_s = 0.0
    if work.teacher:
        pool = config.teacher
        teacher_s = work.teacher / _speed("teacher", section.teacher, gpus=pool.gpus_per_replica, threads=pool.threads)
    if work.judge_side and isinstance(config.judge, ModelJudge):
        judge = config.judge
        judge_s = work.judge_side / _speed("judge", section.judge, gpus=judge.gpus_per_replica, threads=judge.threads)
    objective = config.distill.objective
    rows = num_sequences(config) * section.response_tokens
    network = section.network_gbit_s * 1e9 / 8
    return ServiceTimes(
        forward_s=work.forward / speed,
        loss_s=work.loss / speed,
        backward_s=work.backward / speed,
        step_s=_step_bytes(config, shapes.student) / network,
        teacher_s=teacher_s,
        judge_teacher_s=judge_s if objective.lambda_teacher else 0.0,
        judge_student_s=judge_s if objective.lambda_student else 0.0,
        transfer_s=rows * payload_bytes(config, shapes.teacher) / network if work.teacher else 0.0,
    )


def _speed(role: str, hardware: HardwareSection, *, gpus: float, threads: int) -> float:
    speed = flops_per_s(hardware, gpus=gpus, threads=threads)
    if speed is None:
        raise ConfigError(
            f"the plan does not know how fast a {role} is: set plan.{role}.gpu or plan.{role}.tflops, or give --from"
            " RUN/distill"
        )
    return speed


def _step_bytes(config: Config, student: ModelShape) -> float:
    """What a ring of ranks sends of the gradients; nothing on one rank."""
    ranks = config.student.ranks
    learnt = trainable(student, lora=config.distill.lora, train_head=config.distill.train_head)
    return 2 * (ranks - 1) / ranks * learnt * dtype_bytes(config.student.dtype)


def measured_times(
    rows: Sequence[Mapping[str, float]], *, measured: Config, config: Config, shapes: Shapes
) -> ServiceTimes:
    """Medians of a run's metrics, taken over to another batch size in proportion.

    The metrics tell the student's time as a whole; it is divided as the operations are.

    Raises:
        DataError: nothing was measured.
    """
    if not rows:
        raise DataError("the run to plan from has no metrics yet; let it do some updates first")
    counted = rows[_WARM_UP:] if len(rows) > _WARM_UP else rows

    def median(name: str) -> float:
        return statistics.median(row[name] for row in counted)

    run = measured.distill
    micros = run.batch_size // run.micro_batch_size
    of_rank = micros // measured.student.ranks
    scale = config.distill.micro_batch_size / run.micro_batch_size
    waits = median("wait/teacher_s") + median("wait/judge_s") + _optional_median(counted, "wait/rollouts_s")
    student_s = max(0.0, median("time/update_s") - waits) / of_rank * scale
    work = work_of(config, shapes)
    whole = work.forward + work.loss + work.backward
    objective = config.distill.objective
    sides = bool(run.objective.lambda_teacher) + bool(run.objective.lambda_student)
    judge_s = median("time/judge_s") / micros / sides * scale if objective.needs_judge else 0.0
    return ServiceTimes(
        forward_s=student_s * work.forward / whole,
        loss_s=student_s * work.loss / whole,
        backward_s=student_s * work.backward / whole,
        step_s=0.0,
        teacher_s=median("time/teacher_s") / micros * scale if objective.needs_teacher else 0.0,
        judge_teacher_s=judge_s if objective.lambda_teacher else 0.0,
        judge_student_s=judge_s if objective.lambda_student else 0.0,
    )


def _optional_median(rows: Sequence[Mapping[str, float]], name: str) -> float:
    found = [row[name] for row in rows if name in row]
    return statistics.median(found) if found else 0.0
