"""Configuration -> the parts of a training, put together: the one place that knows what a Distiller needs. Knows no Ray.

Ranks under Ray and a single process differ in the backend, in who answers requests, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from transformers import PreTrainedTokenizerBase

from vcrd_ray.config import Config
from vcrd_ray.config.stages import TrainingSection
from vcrd_ray.data.manifest import check_manifest
from vcrd_ray.data.problems import Example, Reject, make_examples, read_problems, tokenize_prompts
from vcrd_ray.models.backend import Backend
from vcrd_ray.models.checkpoint_files import (
    load_head,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
    tokenizer_fingerprint,
)
from vcrd_ray.models.student import Student
from vcrd_ray.runs.storage import Store
from vcrd_ray.training.batches import Batches
from vcrd_ray.training.data_order import DataOrder
from vcrd_ray.training.distiller import Distiller
from vcrd_ray.training.judge_checks import JudgeBounds
from vcrd_ray.training.on_policy.publisher import Publisher
from vcrd_ray.training.on_policy.requests import AnswerSource, ResponseSource
from vcrd_ray.training.on_policy.response_log import ResponseLog
from vcrd_ray.training.on_policy.rollouts import OnPolicyRollouts
from vcrd_ray.training.on_policy.student_versions import StudentVersions
from vcrd_ray.training.on_policy.validator import Validator
from vcrd_ray.training.sft import FineTuner, check_packing
from vcrd_ray.training.signals import SignalSource
from vcrd_ray.training.telemetry import JudgeTraffic
from vcrd_ray.types import RolloutPair, TeacherRequest


class MakeBackend(Protocol):
    """A student and the shape of its updates -> what trains it."""

    def __call__(self, student: Student, section: TrainingSection, *, num_updates: int, num_micro: int) -> Backend:
        """`num_micro`: micro-batches of an update on this rank."""
        ...


class VersionSource(ResponseSource, AnswerSource, Protocol):
    """Writes responses with versions of the student, for training and for validation."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """What the student's side must know of the teacher; its weights are elsewhere, but for the head."""

    directory: Path
    vocab_size: int
    """Tokens that teacher and student share."""

    @classmethod
    def of(cls, config: Config, tokenizer: PreTrainedTokenizerBase) -> Teacher:
        """The configured one, for a student with this tokenizer."""
        directory = resolve_model(config.teacher.path)
        return cls(directory=directory, vocab_size=min(len(tokenizer), len(load_tokenizer(directory))))


def check_rollouts(config: Config, directory: Path) -> None:
    """Refuse rollouts that are missing, or that another teacher or tokenizer made.

    Raises:
        DataError: names what differs.
    """
    student = resolve_model(config.student.path)
    check_manifest(
        directory,
        teacher=model_fingerprint(resolve_model(config.teacher.path)),
        tokenizer=tokenizer_fingerprint(load_tokenizer(student)),
        # With on-policy rollouts, those that are there count as the ones of the student before training.
        student=model_fingerprint(student) if config.rollouts.refresh.on else None,
    )


def distillation_fingerprints(student: Student, teacher: Teacher) -> dict[str, str]:
    """Identities that a checkpoint of a distillation is bound to."""
    return {
        "teacher": model_fingerprint(teacher.directory),
        "student": model_fingerprint(student.directory),
        "tokenizer": tokenizer_fingerprint(student.tokenizer),
    }


def student_to_distil(config: Config, device: torch.device) -> Student:
    """The student with its adapters, or for full fine-tuning."""
    section = config.distill
    return Student(
        config.student, lora=section.lora, train_head=section.train_head, device=device, seed=config.run.seed
    )


def student_to_fine_tune(config: Config, device: torch.device) -> Student:
    """The student with everything trainable."""
    return Student(config.student, lora=None, train_head=True, device=device, seed=config.run.seed)


def examples_of(config: Config, student: Student) -> tuple[list[Example], list[Reject]]:
    """Gold solutions as the student's tokens, and what was rejected on the way."""
    problems, rejected = read_problems(config.sft.prompts, config.world)
    examples, too_long = make_examples(
        problems, student.tokenizer, prompt=config.prompt, max_length=config.sft.max_length
    )
    return examples, [*rejected, *too_long]


def make_fine_tuner(
    config: Config, student: Student, examples: Sequence[Example], make_backend: MakeBackend, *, world_size: int = 1
) -> tuple[FineTuner, Backend]:
    """The loop of fine-tuning and what trains the student in it."""
    section = config.sft
    if section.packing:
        check_packing(student)
    order = DataOrder(
        num_examples=len(examples),
        batch_size=section.batch_size,
        micro_batch_size=section.micro_batch_size,
        ranks=world_size,
        seed=config.run.seed,
    )
    num_updates = order.num_updates(epochs=section.epochs, num_updates=section.num_updates)
    backend = make_backend(student, section, num_updates=num_updates, num_micro=order.num_micro_batches)
    tuner = FineTuner(
        backend=backend,
        examples=examples,
        section=section,
        seed=config.run.seed,
        vocab_size=len(student.tokenizer),
    )
    return tuner, backend


def make_batches(
    config: Config,
    pairs: Sequence[RolloutPair],
    student: Student,
    make_backend: MakeBackend,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[Batches, Backend]:
    """One rank's data of a distillation, and what trains the student on it."""
    section = config.distill
    batches = Batches(pairs, section, seed=config.run.seed, rank=rank, world_size=world_size)
    backend = make_backend(student, section, num_updates=batches.num_updates, num_micro=batches.order.num_micro_batches)
    return batches, backend


def make_teacher_request(config: Config) -> TeacherRequest:
    """What a run of this objective asks of the teacher."""
    return TeacherRequest(
        transport=config.teacher.transport,
        top_k=config.teacher.top_k,
        propose=config.distill.objective.needs_judge,
        seed=config.run.seed,
    )


def make_distiller(
    config: Config,
    *,
    backend: Backend,
    batches: Batches,
    signals: SignalSource,
    teacher: Teacher,
    versions: StudentVersions | None = None,
    take_judge_traffic: Callable[[], JudgeTraffic] = JudgeTraffic,
    span: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Distiller:
    """The loop of distillation. Arguments as for `Distiller`."""
    section = config.distill
    needs_head = section.objective.needs_teacher and config.teacher.transport == "hidden"
    head = load_head(teacher.directory, dtype=config.teacher.dtype) if needs_head else None
    return Distiller(
        backend=backend,
        teacher_head=None if head is None else head.to(backend.student.device),
        signals=signals,
        batches=batches,
        section=section,
        vocab_size=teacher.vocab_size,
        on_policy=None if versions is None else versions.on_policy,
        judge_bounds=JudgeBounds.of(config.judge),
        take_judge_traffic=take_judge_traffic,
        span=span,
    )


def make_versions(
    config: Config,
    *,
    backend: Backend,
    batches: Batches,
    source: VersionSource,
    run_dir: Path,
    pairs: Sequence[RolloutPair],
    store: Store | None = None,
) -> StudentVersions:
    """Who uses published versions of the student in this run."""
    tokenizer = backend.student.tokenizer
    refresh, watch = config.rollouts.refresh, config.distill.watch
    publisher = Publisher(backend=backend, run_dir=run_dir, pairs=pairs, merged=refresh.sync == "merged", store=store)
    on_policy = validator = None
    if refresh.on:
        responses = ResponseLog(run_dir, decode=tokenizer.decode)
        on_policy = OnPolicyRollouts(refresh, batches, source=source, publisher=publisher, responses=responses)
    if watch.every:
        problems, _ = read_problems(watch.prompts, config.world)
        prompts, _ = tokenize_prompts(problems, tokenizer, prompt=config.prompt, max_length=2**31)
        validator = Validator(
            every=watch.every,
            prompts=prompts,
            source=source if backend.rank == 0 else None,
            publisher=publisher,
            run_dir=run_dir,
            decode=partial(tokenizer.decode, skip_special_tokens=True),
        )
    return StudentVersions(publisher=publisher, on_policy=on_policy, validator=validator)
