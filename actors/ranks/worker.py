"""One student rank's life under Ray Train: what of its cluster a Trainer is given. The training itself knows no Ray."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import ray.train
import torch

from actors.pools.signals import RemoteResponses, RemoteSignals
from actors.pools.startup import await_pools
from actors.ranks.files import RunFiles
from actors.ranks.run_state import RankJob, run_state
from actors.ranks.timeline import Spans
from vcrd_ray.config import Config
from vcrd_ray.data.problems import write_rejects
from vcrd_ray.data.rollouts import read_pairs
from vcrd_ray.models.backend.deepspeed import deepspeed_backend, import_deepspeed, use_cpu_accelerator
from vcrd_ray.models.checkpoint_files import device_for, model_fingerprint
from vcrd_ray.runs.logs import log_as
from vcrd_ray.runs.storage import local_path
from vcrd_ray.training import assemble
from vcrd_ray.training.trainer import Trainer


def rank_main(job: RankJob) -> None:
    """What every worker of the group does."""
    section = job.config.student
    if section.gpus_per_rank == 0:
        use_cpu_accelerator()
    torch.set_num_threads(section.threads)
    _init_process_group(section.gpus_per_rank)
    context = ray.train.get_context()
    log_as(stderr=True, run="/".join(job.run_dir.parts[-2:]), role="student", replica=context.get_world_rank())
    files = RunFiles(job.run_dir, job.config.run, rank=context.get_world_rank(), local_rank=context.get_local_rank())
    files.pull()
    (_fine_tune if job.rollouts is None else _distill)(job, files, context.get_world_size())


def _init_process_group(gpus: float) -> None:
    # Finds the process group that Ray Train made and wraps it.
    import_deepspeed().init_distributed(dist_backend="nccl" if gpus else "gloo", verbose=False)


def _fine_tune(job: RankJob, files: RunFiles, world_size: int) -> None:
    config = job.config
    student = assemble.student_to_fine_tune(config, device_for(config.student.gpus_per_rank))
    examples, rejects = assemble.examples_of(config, student)
    if files.rank == 0:
        write_rejects(job.run_dir / "rejects.jsonl", rejects)
    tuner, backend = assemble.make_fine_tuner(config, student, examples, _backend(config), world_size=world_size)
    fingerprints = {"student": model_fingerprint(student.directory)}
    state = run_state(job, files, tuner, backend, config.sft, fingerprints)
    Trainer(loop=tuner, backend=backend, section=config.sft, run=state).run()


def _distill(job: RankJob, files: RunFiles, world_size: int) -> None:
    config, section, rank = job.config, job.config.distill, files.rank
    assert job.rollouts is not None
    student = assemble.student_to_distil(config, device_for(config.student.gpus_per_rank))
    teacher = assemble.Teacher.of(config, student.tokenizer)
    fingerprints = assemble.distillation_fingerprints(student, teacher)
    pairs, rejects = read_pairs(
        local_path(job.rollouts),
        teacher=fingerprints["teacher"],
        tokenizer=fingerprints["tokenizer"],
        vocab_size=teacher.vocab_size,
        max_length=section.max_length,
    )
    if rank == 0:
        write_rejects(job.run_dir / "rejects.jsonl", rejects)
    batches, backend = assemble.make_batches(config, pairs, student, _backend(config), rank=rank, world_size=world_size)
    versions = None
    if job.rollout is not None:
        source = RemoteResponses(job.rollout, timeout_s=config.cluster.request_timeout_s)
        versions = assemble.make_versions(
            config,
            backend=backend,
            batches=batches,
            source=source,
            run_dir=job.run_dir,
            pairs=pairs,
            store=files.store,
        )
    signals = RemoteSignals(
        teacher=job.teacher,
        judge=job.judge,
        request=assemble.make_teacher_request(config),
        timeout_s=config.cluster.request_timeout_s,
        rank=rank,
        max_crashes=config.judge.max_crashes,
        max_quarantined=config.judge.max_set_aside,
    )
    distiller = assemble.make_distiller(
        config,
        backend=backend,
        batches=batches,
        signals=signals,
        teacher=teacher,
        versions=versions,
        take_judge_traffic=signals.take_judge_traffic,
        span=Spans(job.run_dir, rank=rank).span if config.cluster.timeline else nullcontext,
    )
    judge = await_pools(job.notes)
    if judge is not None:
        fingerprints["judge"] = judge
    state = run_state(job, files, distiller, backend, section, fingerprints)
    Trainer(loop=distiller, backend=backend, section=section, run=state, versions=versions).run()


def _backend(config: Config) -> assemble.MakeBackend:
    return partial(deepspeed_backend, zero_stage=config.student.zero_stage)
