"""Student ranks under Ray Train: placement, rendezvous, restart from the last complete checkpoint, and one rank's life.

Ray Train restarts the group; the checkpoints are this project's own (vcrd_ray.checkpoints), because Ray Train's record
of its checkpoints is overwritten in place and a kill or a full disk in that moment loses all of them.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from actors.gauges import Gauges
from actors.placement import role_resources
from actors.pools import Pool
from actors.remote_signals import RemoteResponses, RemoteSignals
from vcrd_ray import checkpoints
from vcrd_ray.backends import DeepSpeedBackend, use_cpu_accelerator
from vcrd_ray.batches import Batches
from vcrd_ray.config import Config, ModelJudge, TrainingSection
from vcrd_ray.data.order import DataOrder
from vcrd_ray.data.problems import make_examples, read_problems, tokenize_prompts, write_rejects
from vcrd_ray.data.rollouts import read_pairs
from vcrd_ray.distill import Distiller, JudgeBounds, teacher_request
from vcrd_ray.errors import CheckpointError, VcrdError
from vcrd_ray.evaluation.statistics import Accuracy
from vcrd_ray.models import (
    device_for,
    load_head,
    load_tokenizer,
    model_fingerprint,
    resolve_model,
    tokenizer_fingerprint,
)
from vcrd_ray.objectives import ObjectiveState
from vcrd_ray.refresh.kept import KeptResponses
from vcrd_ray.refresh.publish import Publisher
from vcrd_ray.refresh.refresher import Refresher
from vcrd_ray.refresh.watch import Watcher
from vcrd_ray.runs import MetricsLog, read_jsonl, write_json, write_text
from vcrd_ray.sft import FineTuner
from vcrd_ray.student import Student
from vcrd_ray.types import RolloutPair, UpdateReport

logger = logging.getLogger(__name__)

DONE_FILE = "training.json"
# They would come again: no restart helps. A lost peer or a broken connection is a RuntimeError or an error of Ray's.
_PROGRAMMING_ERRORS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ImportError, NameError)
_DECISIONS_FILE = "decisions.jsonl"


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """What a rank is told. Pickled to every worker."""

    config: Config
    run_dir: Path
    rollouts: Path | None
    """Rollouts to distil on; None: fine-tune on gold solutions."""
    teacher: Pool | None
    judge: Pool | None
    rollout: Pool | None
    """Writers of new student responses; None: those in `rollouts` stay."""
    judge_fingerprint: str | None
    """Identity of what the judge pool answers with."""


def is_finished(run_dir: Path) -> bool:
    """Whether a training in this directory came to its end."""
    try:
        return bool(json.loads((run_dir / DONE_FILE).read_text(encoding="utf-8"))["finished"])
    except FileNotFoundError:
        return False


def train(job: RankJob) -> None:
    """Run the student group to the end of its training (or to `stop_after`).

    A group that dies (a killed process, a lost node) starts again from the last complete checkpoint. An error that a
    rank raised on purpose would come again, so it ends the run at once.

    Raises:
        VcrdError: the error that a rank raised on purpose, as it raised it.
        CheckpointError: the group died more often than student.max_failures allows.
    """
    for attempt in range(job.config.student.max_failures + 1):
        try:
            _fit(job)
            warn_of_set_aside(job.run_dir)
            return
        except TrainingFailedError as error:
            failures = list(getattr(error, "worker_failures", {}).values()) or [error]
            causes = [cause for failure in failures for cause in _causes(failure)]
            for cause in causes:
                if isinstance(cause, VcrdError):
                    raise cause from None
            if any(isinstance(cause, _PROGRAMMING_ERRORS) for cause in causes):
                raise
            logger.warning("the student group died (attempt %d): %s", attempt + 1, error)
            last = error
    raise CheckpointError(
        f"the student group died {job.config.student.max_failures + 1} times, last: {last};"
        " run the same command again to resume from the last checkpoint"
    ) from last


def _fit(job: RankJob) -> None:
    section = job.config.student
    trainer = TorchTrainer(
        _rank_main,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if section.gpus_per_rank else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=section.ranks,
            use_gpu=section.gpus_per_rank > 0,
            resources_per_worker=role_resources(job.config, "student"),
        ),
        run_config=RunConfig(
            # A new name each time: Ray Train must not look for checkpoints of its own.
            name=f"attempt-{time.time_ns()}",
            storage_path=str(job.run_dir / "ray_train"),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    trainer.fit()


def warn_of_set_aside(run_dir: Path) -> None:
    """Tell the person who waits for the run; what the ranks log is in Ray's files only."""
    rows = sum(row.get("judge/set_aside_rows", 0.0) for row in read_jsonl(run_dir / "metrics.jsonl"))
    if rows:
        logger.warning(
            "%d rows were not judged and got weight 1: judge processes died of their requests (judge/set_aside_rows in %s)",
            *(rows, run_dir / "metrics.jsonl"),
        )


def _causes(failure: BaseException | None) -> list[BaseException]:
    """An error and what Ray wrapped in it."""
    found: list[BaseException] = []
    while failure is not None and failure not in found:
        found.append(failure)
        inner = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure.__cause__
        failure = inner if isinstance(inner, BaseException) else None
    return found


def _rank_main(arguments: dict[str, Any]) -> None:
    job: RankJob = arguments["job"]
    section = job.config.student
    if section.gpus_per_rank == 0:
        use_cpu_accelerator()
    torch.set_num_threads(section.threads)
    _init_deepspeed(section.gpus_per_rank)
    rank = ray.train.get_context().get_world_rank()
    world_size = ray.train.get_context().get_world_size()
    device = device_for(section.gpus_per_rank)
    (_fine_tune if job.rollouts is None else _distill)(job, rank, world_size, device)


def _init_deepspeed(gpus: float) -> None:
    import deepspeed

    # Finds the process group that Ray Train made and wraps it.
    deepspeed.init_distributed(dist_backend="nccl" if gpus else "gloo", verbose=False)


def _fine_tune(job: RankJob, rank: int, world_size: int, device: torch.device) -> None:
    config = job.config
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
    _run(job, config.sft, backend, fingerprints, tuner.num_updates, tuner.run, lambda: {})


def _distill(job: RankJob, rank: int, world_size: int, device: torch.device) -> None:
    config, section = job.config, job.config.distill
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
    if job.judge_fingerprint is not None:
        fingerprints["judge"] = job.judge_fingerprint
    pairs, rejects = read_pairs(
        job.rollouts,
        teacher=fingerprints["teacher"],
        tokenizer=fingerprints["tokenizer"],
        vocab_size=vocab_size,
        max_length=section.max_length,
    )
    if rank == 0:
        write_rejects(job.run_dir / "rejects.jsonl", rejects)
    batches = Batches(pairs, section, seed=config.run.seed, rank=rank, world_size=world_size)
    backend = _backend(config, section, student, batches.order, world_size=world_size)
    versions = _versions(job, batches, backend, pairs)
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
        refresher=None if versions is None else versions.refresher,
        judge_bounds=JudgeBounds(
            max_invalid_share=config.judge.max_invalid_share,
            self_check_tolerance=config.judge.tolerance if isinstance(config.judge, ModelJudge) else None,
        ),
        take_judge_traffic=signals.take_judge_traffic,
    )
    _run(
        job,
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
    refresher: Refresher | None
    watcher: Watcher | None

    def after(self, report: UpdateReport, resumable: Callable[[], list[int]]) -> list[tuple[int, Accuracy]]:
        """An update is done; accuracies that have come in."""
        done = report.update + 1
        if self.refresher is None:
            self.publisher.note(learnt=report.metrics["lr"] > 0 and report.metrics["grad_norm"] > 0)
        found = [] if self.watcher is None else self.watcher.after(done)
        kept = set() if self.refresher is None else self.refresher.kept(done, resumable())
        self.publisher.prune(kept | (set() if self.watcher is None else self.watcher.kept))
        return found


def _versions(
    job: RankJob, batches: Batches, backend: DeepSpeedBackend, pairs: Sequence[RolloutPair]
) -> _Versions | None:
    if job.rollout is None:
        return None
    config, tokenizer = job.config, backend.student.tokenizer
    refresh, watch = config.rollouts.refresh, config.distill.watch
    source = RemoteResponses(job.rollout, timeout_s=config.cluster.request_timeout_s)
    publisher = Publisher(backend=backend, run_dir=job.run_dir, pairs=pairs, merged=refresh.sync == "merged")
    refresher = watcher = None
    if refresh.on:
        responses = KeptResponses(job.run_dir, decode=tokenizer.decode)
        refresher = Refresher(refresh, batches, source=source, publisher=publisher, responses=responses)
    if watch.every:
        problems, _ = read_problems(watch.prompts, config.world)
        prompts, _ = tokenize_prompts(problems, tokenizer, prompt=config.prompt, max_length=2**31)
        watcher = Watcher(
            every=watch.every,
            prompts=prompts,
            source=source if backend.rank == 0 else None,
            publisher=publisher,
            run_dir=job.run_dir,
            decode=partial(tokenizer.decode, skip_special_tokens=True),
        )
    return _Versions(publisher=publisher, refresher=refresher, watcher=watcher)


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


def _run(
    job: RankJob,
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
    directory = job.run_dir / "checkpoints"
    first_update = 0
    found = checkpoints.newest(directory)
    if found is not None:
        path, record = found
        checkpoints.check_resumable(record, world_size=backend.world_size, fingerprints=fingerprints)
        backend.load(path)
        if state is not None:
            state.restore(record.state)
        first_update = record.next_update
    stop = min(num_updates, section.stop_after or num_updates)
    log = RankLog(job.run_dir, next_update=first_update, num_updates=num_updates) if backend.rank == 0 else None

    def on_update(report: UpdateReport) -> None:
        if log is not None:
            log.write(report)
        done = report.update + 1
        if done % section.checkpoint_every == 0 or done == stop:
            checkpoints.save(
                directory,
                checkpoints.Record(
                    next_update=done,
                    world_size=backend.world_size,
                    fingerprints=fingerprints,
                    state={} if state is None else state.record(),
                ),
                write=backend.save,
                rank=backend.rank,
                barrier=torch.distributed.barrier,
                keep=section.keep_checkpoints,
            )
        if versions is not None:
            show(versions.after(report, partial(checkpoints.complete, directory)))

    def show(found: list[tuple[int, Accuracy]]) -> None:
        if log is not None:
            for update, figures in found:
                log.watched(update, figures)

    watcher = None if versions is None else versions.watcher
    if watcher is not None:
        watcher.begin(first_update)
    loop(first_update=first_update, stop=stop, on_update=on_update)
    if watcher is not None:
        show(watcher.finish())
    if stop == num_updates:
        backend.export(job.run_dir)
    if log is not None:
        log.close()
        write_json(
            job.run_dir / DONE_FILE,
            {"updates_done": stop, "num_updates": num_updates, "finished": stop == num_updates, **facts()},
        )


class _StateKeeper:
    """The objective's own state, to and from a checkpoint's record."""

    def __init__(self, distiller: Distiller) -> None:
        self._distiller = distiller

    def record(self) -> dict[str, object]:
        return self._distiller.state.to_record()

    def restore(self, record: dict[str, object]) -> None:
        self._distiller.state = ObjectiveState.from_record(record)


class RankLog:
    """Metrics and decisions of rank 0; both are cut back to where a resumed run begins."""

    def __init__(self, run_dir: Path, *, next_update: int, num_updates: int) -> None:
        write_json(run_dir / "progress.json", {"num_updates": num_updates, "pid": os.getpid()})
        # A run directory and its job, such as demo/distill-vcrd: what people call the run.
        self._gauges = Gauges(role="student", replica=0, run="/".join(run_dir.parts[-2:]))
        self._metrics = MetricsLog(run_dir, next_update=next_update)
        self._path = run_dir / _DECISIONS_FILE
        if self._path.exists():
            kept = [row for row in read_jsonl(self._path) if row["update"] < next_update]
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._decisions = self._path.open("a", encoding="utf-8")

    def write(self, report: UpdateReport) -> None:
        """Append one update."""
        self._metrics.write(report.update, report.metrics)
        self._gauges.set({"update": report.update, **report.metrics})
        self._decisions.writelines(json.dumps(asdict(d)) + "\n" for d in report.decisions)
        self._decisions.flush()

    def watched(self, update: int, figures: Accuracy) -> None:
        """Show how the student did on held-out problems when so many updates were done."""
        self._metrics.write_scalar("watch/pass_at_1", figures.pass_at_1, update)
        self._gauges.set({"watch/pass_at_1": figures.pass_at_1, "watch/update": update})

    def close(self) -> None:
        """Flush all files."""
        self._metrics.close()
        self._decisions.close()
