"""One student rank's life under Ray Train: load, resume, train, checkpoint, export."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch

from actors.pools.futures import RemoteResponses, RemoteSignals
from actors.pools.pool import Pool
from actors.pools.startup import await_pools
from actors.ranks.files import RunFiles
from actors.ranks.log import RankLog
from actors.ranks.notes import ControlNotes
from actors.ranks.stopping import EarlyStop
from actors.ranks.timeline import Spans
from vcrd_ray.config import Config
from vcrd_ray.config.models import ModelJudge
from vcrd_ray.config.stages import TrainingSection
from vcrd_ray.data.problems import make_examples, read_problems, tokenize_prompts, write_rejects
from vcrd_ray.data.rollouts import read_pairs
from vcrd_ray.evaluation.statistics import Accuracy
from vcrd_ray.method.objective_state import ObjectiveState
from vcrd_ray.models.backend.deepspeed import DeepSpeedBackend, use_cpu_accelerator
from vcrd_ray.models.checkpoint_files import (
    device_for,
    load_head,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
    tokenizer_fingerprint,
)
from vcrd_ray.models.student import Student
from vcrd_ray.runs import checkpoints
from vcrd_ray.runs.files import write_json
from vcrd_ray.runs.logs import log_as
from vcrd_ray.runs.storage import local_path
from vcrd_ray.training.batches import Batches
from vcrd_ray.training.data_order import DataOrder
from vcrd_ray.training.distiller import Distiller, JudgeBounds, teacher_request
from vcrd_ray.training.on_policy.publisher import Publisher
from vcrd_ray.training.on_policy.response_log import ResponseLog
from vcrd_ray.training.on_policy.rollouts import OnPolicyRollouts
from vcrd_ray.training.on_policy.validator import Validator
from vcrd_ray.training.sft import FineTuner
from vcrd_ray.types import RolloutPair, UpdateReport

logger = logging.getLogger(__name__)

DONE_FILE = "training.json"


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """What a rank is told. Pickled to every worker."""

    config: Config
    run_dir: Path
    rollouts: str | None
    """Rollouts to distil on, a directory or a folder in storage; None: fine-tune on gold solutions."""
    teacher: Pool | None
    judge: Pool | None
    rollout: Pool | None
    """Writers of new student responses; None: those in `rollouts` stay."""
    notes: ControlNotes
    must_save_by: float | None
    """Seconds since the epoch."""


def rank_main(job: RankJob) -> None:
    """What every worker of the group does."""
    section = job.config.student
    if section.gpus_per_rank == 0:
        use_cpu_accelerator()
    torch.set_num_threads(section.threads)
    _init_deepspeed(section.gpus_per_rank)
    context = ray.train.get_context()
    log_as(stderr=True, run="/".join(job.run_dir.parts[-2:]), role="student", replica=context.get_world_rank())
    files = RunFiles(job.run_dir, job.config.run, rank=context.get_world_rank(), local_rank=context.get_local_rank())
    files.pull()
    (_fine_tune if job.rollouts is None else _distill)(job, files, context.get_world_size())


def _init_deepspeed(gpus: float) -> None:
    import deepspeed

    # Finds the process group that Ray Train made and wraps it.
    deepspeed.init_distributed(dist_backend="nccl" if gpus else "gloo", verbose=False)


def _fine_tune(job: RankJob, files: RunFiles, world_size: int) -> None:
    config, rank, device = job.config, files.rank, device_for(job.config.student.gpus_per_rank)
    student = Student(config.student, lora=None, train_head=True, device=device, seed=config.run.seed)
    problems, bad_rows = read_problems(config.sft.prompts, config.world)
    examples, too_long = make_examples(
        problems, student.tokenizer, prompt=config.prompt, max_length=config.sft.max_length
    )
    if rank == 0:
        write_rejects(job.run_dir / "rejects.jsonl", [*bad_rows, *too_long])
    section = config.sft
    order = DataOrder(
        num_examples=len(examples),
        batch_size=section.batch_size,
        micro_batch_size=section.micro_batch_size,
        ranks=world_size,
        seed=config.run.seed,
    )
    backend = _backend(config, section, student, order, world_size=world_size)
    tuner = FineTuner(
        backend=backend,
        examples=examples,
        section=config.sft,
        seed=config.run.seed,
        vocab_size=len(student.tokenizer),
    )
    fingerprints = {"student": model_fingerprint(student.directory)}
    _run(job, files, config.sft, backend, fingerprints, tuner.num_updates, tuner.run, lambda: {})


def _distill(job: RankJob, files: RunFiles, world_size: int) -> None:
    config, section, rank = job.config, job.config.distill, files.rank
    device = device_for(config.student.gpus_per_rank)
    assert job.rollouts is not None
    student = Student(
        config.student, lora=section.lora, train_head=section.train_head, device=device, seed=config.run.seed
    )
    teacher = resolve_model(config.teacher.path)
    vocab_size = min(len(student.tokenizer), len(load_tokenizer(teacher)))
    fingerprints = {
        "teacher": model_fingerprint(teacher),
        "student": model_fingerprint(student.directory),
        "tokenizer": tokenizer_fingerprint(student.tokenizer),
    }
    pairs, rejects = read_pairs(
        local_path(job.rollouts),
        teacher=fingerprints["teacher"],
        tokenizer=fingerprints["tokenizer"],
        vocab_size=vocab_size,
        max_length=section.max_length,
    )
    if rank == 0:
        write_rejects(job.run_dir / "rejects.jsonl", rejects)
    batches = Batches(pairs, section, seed=config.run.seed, rank=rank, world_size=world_size)
    backend = _backend(config, section, student, batches.order, world_size=world_size)
    versions = _versions(job, files, batches, backend, pairs)
    signals = RemoteSignals(
        teacher=job.teacher,
        judge=job.judge,
        request=teacher_request(section, config.teacher, seed=config.run.seed),
        timeout_s=config.cluster.request_timeout_s,
        rank=rank,
        max_crashes=config.judge.max_crashes,
        max_set_aside=config.judge.max_set_aside,
    )
    distiller = Distiller(
        backend=backend,
        teacher_head=load_head(teacher, dtype=config.teacher.dtype).to(device)
        if section.objective.needs_teacher and config.teacher.transport == "hidden"
        else None,
        signals=signals,
        batches=batches,
        section=section,
        vocab_size=vocab_size,
        on_policy=None if versions is None else versions.on_policy,
        judge_bounds=JudgeBounds(
            max_invalid_share=config.judge.max_invalid_share,
            self_check_tolerance=config.judge.tolerance if isinstance(config.judge, ModelJudge) else None,
        ),
        take_judge_traffic=signals.take_judge_traffic,
        span=Spans(job.run_dir, rank=rank).span if config.cluster.timeline else nullcontext,
    )
    judge = await_pools(job.notes)
    if judge is not None:
        fingerprints["judge"] = judge
    _run(
        job,
        files,
        section,
        backend,
        fingerprints,
        distiller.num_updates,
        distiller.run,
        lambda: {"self_check_difference": distiller.self_check_difference, "num_pairs": len(pairs)},
        state=_StateKeeper(distiller),
        versions=versions,
    )


@dataclass(frozen=True, kw_only=True)
class _Versions:
    """What is done with published versions of the student in a run."""

    publisher: Publisher
    on_policy: OnPolicyRollouts | None
    validator: Validator | None

    def after(self, report: UpdateReport, resumable: Callable[[], list[int]]) -> list[tuple[int, Accuracy]]:
        """An update is done; accuracies that have come in."""
        done = report.update + 1
        if self.on_policy is None:
            self.publisher.note(learnt=report.metrics["lr"] > 0 and report.metrics["grad_norm"] > 0)
        found = [] if self.validator is None else self.validator.after(done)
        kept = set() if self.on_policy is None else self.on_policy.kept(done, resumable())
        self.publisher.prune(kept | (set() if self.validator is None else self.validator.kept))
        return found


def _versions(
    job: RankJob, files: RunFiles, batches: Batches, backend: DeepSpeedBackend, pairs: Sequence[RolloutPair]
) -> _Versions | None:
    if job.rollout is None:
        return None
    config, tokenizer = job.config, backend.student.tokenizer
    refresh, watch = config.rollouts.refresh, config.distill.watch
    source = RemoteResponses(job.rollout, timeout_s=config.cluster.request_timeout_s)
    publisher = Publisher(
        backend=backend, run_dir=job.run_dir, pairs=pairs, merged=refresh.sync == "merged", store=files.store
    )
    on_policy = validator = None
    if refresh.on:
        responses = ResponseLog(job.run_dir, decode=tokenizer.decode)
        on_policy = OnPolicyRollouts(refresh, batches, source=source, publisher=publisher, responses=responses)
    if watch.every:
        problems, _ = read_problems(watch.prompts, config.world)
        prompts, _ = tokenize_prompts(problems, tokenizer, prompt=config.prompt, max_length=2**31)
        validator = Validator(
            every=watch.every,
            prompts=prompts,
            source=source if backend.rank == 0 else None,
            publisher=publisher,
            run_dir=job.run_dir,
            decode=partial(tokenizer.decode, skip_special_tokens=True),
        )
    return _Versions(publisher=publisher, on_policy=on_policy, validator=validator)


def _backend(
    config: Config, section: TrainingSection, student: Student, order: DataOrder, *, world_size: int
) -> DeepSpeedBackend:
    return DeepSpeedBackend(
        student,
        section.optim,
        num_updates=order.num_updates(epochs=section.epochs, num_updates=section.num_updates),
        num_micro=order.num_micro_batches,
        micro_batch_size=section.micro_batch_size,
        zero_stage=config.student.zero_stage,
    )


def _resume(
    folder: checkpoints.CheckpointManager,
    backend: DeepSpeedBackend,
    fingerprints: dict[str, str],
    state: _StateKeeper | None,
    *,
    any_size: bool,
) -> int:
    """Load the last complete checkpoint; the first update that is still to be done."""
    found = folder.newest()
    if found is None:
        return 0
    path, record = found
    checkpoints.check_resumable(record, world_size=backend.world_size, fingerprints=fingerprints, any_size=any_size)
    backend.load(path)
    if state is not None:
        state.restore(record.state)
    return record.next_update


def _run(
    job: RankJob,
    files: RunFiles,
    section: TrainingSection,
    backend: DeepSpeedBackend,
    fingerprints: dict[str, str],
    num_updates: int,
    loop: Callable[..., None],
    facts: Callable[[], dict[str, Any]],
    state: _StateKeeper | None = None,
    versions: _Versions | None = None,
) -> None:
    """Resume, train, checkpoint, log, export: the same for every kind of training."""
    folder = files.checkpoints(keep=section.keep_checkpoints)
    any_size = job.config.student.zero_stage == 0
    first_update = _resume(folder, backend, fingerprints, state, any_size=any_size)
    stop = min(num_updates, section.stop_after or num_updates)
    log = None
    if backend.rank == 0:
        log = RankLog(job.run_dir, job.config, notes=job.notes, next_update=first_update, num_updates=num_updates)
    early = EarlyStop(backend, job.notes, must_save_by=job.must_save_by)

    def save(done: int) -> float:
        started = time.monotonic()
        files.push()
        record = checkpoints.CheckpointRecord(
            next_update=done,
            world_size=backend.world_size,
            fingerprints=fingerprints,
            state={} if state is None else state.record(),
        )
        folder.save(record, write=backend.save)
        if backend.rank == 0:
            job.notes.leave("saved", done)
        return time.monotonic() - started

    def on_update(report: UpdateReport) -> None:
        log_as(update=report.update)
        if log is not None:
            log.write(report)
        done = report.update + 1
        due = done % section.checkpoint_every == 0 or done == stop
        saved_s = save(done) if early.must_save() or due else 0.0
        if versions is not None:
            show(versions.after(report, folder.complete))
        if done < stop:
            early.done(saved_s=saved_s)

    def show(found: list[tuple[int, Accuracy]]) -> None:
        if log is not None:
            for update, figures in found:
                log.watched(update, figures)

    validator = None if versions is None else versions.validator
    if validator is not None:
        validator.begin(first_update)
    loop(first_update=first_update, stop=stop, on_update=on_update)
    if validator is not None:
        show(validator.finish())
    if stop == num_updates:
        backend.export(job.run_dir)
    if log is not None:
        log.close()
        files.push()
        write_json(
            job.run_dir / DONE_FILE,
            {"updates_done": stop, "num_updates": num_updates, "finished": stop == num_updates, **facts()},
        )
        files.push()


class _StateKeeper:
    """The objective's own state, to and from a checkpoint's record."""

    def __init__(self, distiller: Distiller) -> None:
        self._distiller = distiller

    def record(self) -> dict[str, object]:
        return self._distiller.state.to_record()

    def restore(self, record: dict[str, object]) -> None:
        self._distiller.state = ObjectiveState.from_record(record)
