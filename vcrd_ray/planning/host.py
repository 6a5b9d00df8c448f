"""What roles hold in host memory: teacher's answers in flight, and models on their way to a device. Knows no nodes."""

from __future__ import annotations

from dataclasses import dataclass

from vcrd_ray.config import Config
from vcrd_ray.config.models import JudgePool, ModelJudge
from vcrd_ray.planning.memory import GIB, dtype_bytes, num_sequences, payload_bytes
from vcrd_ray.planning.rates import Shapes
from vcrd_ray.planning.shapes import ModelShape


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """Teacher's answers that exist at a time."""

    answers: int
    """Of one rank: asked for, waited for, or between forward and backward."""
    answer_bytes: int
    """Of one micro-batch, at the longest sequences."""
    per_rank: int
    """Bytes in the object store of a rank's node."""
    all_ranks: int
    """Bytes in those of the teachers' nodes together."""


def answers_in_flight(config: Config) -> int:
    """Most answers of one rank that are alive: those ahead, the one that goes forward, and one whose judge is awaited."""
    return config.distill.prefetch + 2 if config.distill.overlap else 1


def in_flight(config: Config, teacher: ModelShape) -> InFlight:
    """What the object stores must hold. An answer stays where it was made and where it is read until its backward pass."""
    rows = num_sequences(config) * (config.distill.max_length - 1)  # a prompt has one token at least
    answer = rows * payload_bytes(config, teacher) if config.distill.objective.needs_teacher else 0
    per_rank = answers_in_flight(config) * answer
    return InFlight(
        answers=answers_in_flight(config),
        answer_bytes=answer,
        per_rank=per_rank,
        all_ranks=config.student.ranks * per_rank,
    )


def host_bytes(config: Config, role: str, shapes: Shapes) -> int:
    """Host memory of one actor at its worst: its process, and its model, which is read there before it goes to a GPU."""
    process = int(config.plan.process_gib * GIB)
    match role:
        case "student":
            head = shapes.teacher.embedding * dtype_bytes(config.teacher.dtype)
            return process + shapes.student.parameters * dtype_bytes(config.student.dtype) + head
        case "teacher":
            return process + shapes.teacher.parameters * dtype_bytes(config.teacher.dtype)
        case "rollout":
            return process + shapes.student.parameters * dtype_bytes(config.student.dtype)
    section: JudgePool = config.judge
    if not isinstance(section, ModelJudge) or shapes.judge is None:
        return process
    models = [shapes.judge, *([] if shapes.reference is None else [shapes.reference])]
    return process + sum(shape.parameters for shape in models) * dtype_bytes(section.dtype)
