"""Fine-tuning and distillation in this process, with plain torch and without Ray: for notebooks, tables and tests.

Config and rollout pairs in, trained student and reports out. What the actors do differently is where teacher and judge
answer, and DeepSpeed in place of plain torch; losses and students are the same to rounding.

    >>> from vcrd_ray.config import Config
    >>> from vcrd_ray.config.methods import with_method
    >>> from vcrd_ray.training.in_process import distil, make_pairs
    >>> config = Config.model_validate({  # the tiny world: nothing is downloaded
    ...     "rollouts": {"prompts": {"type": "tiny", "seed": 2, "count": 8}, "sampling": {"max_new_tokens": 40}},
    ...     "distill": {"num_updates": 2, "batch_size": 4, "micro_batch_size": 2},
    ... })
    >>> pairs = make_pairs(config)
    >>> trained = distil(with_method(config, "vcrd"), pairs)
    >>> [report.update for report in trained.reports]
    [0, 1]
    >>> sorted(name for name in trained.reports[0].metrics if name.startswith("loss"))
    ['loss', 'loss/student_prefix', 'loss/teacher_prefix']
    >>> trained.student.export(directory)  # directory/model for transformers, directory/adapter for PEFT
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vcrd_ray.config import Config
from vcrd_ray.data.manifest import with_samples
from vcrd_ray.data.problems import read_prompts
from vcrd_ray.engines import Engine
from vcrd_ray.engines.loading import load_engine, load_versioned_engine
from vcrd_ray.errors import ConfigError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.judges.requests import judged_at
from vcrd_ray.models.backend.torch import torch_backend
from vcrd_ray.models.checkpoint_files import device_for, load_tokenizer, resolve_model
from vcrd_ray.models.student import Student
from vcrd_ray.training import assemble
from vcrd_ray.training.on_policy.writer import LocalResponses, ResponseWriter, WriterSettings
from vcrd_ray.training.signals import LocalSignals
from vcrd_ray.training.trainer import Trainer
from vcrd_ray.types import RolloutPair, UpdateReport


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training in this process leaves."""

    student: Student
    reports: tuple[UpdateReport, ...]
    """One an update."""


def fine_tune(config: Config) -> Trained:
    """Fine-tune the student on the gold solutions of `config.sft.prompts`."""
    student = assemble.student_to_fine_tune(config, device_for(config.student.gpus_per_rank))
    examples, _ = assemble.examples_of(config, student)
    tuner, backend = assemble.make_fine_tuner(config, student, examples, torch_backend)
    trainer = Trainer(loop=tuner, backend=backend, section=config.sft)
    trainer.run()
    return Trained(student=student, reports=tuple(trainer.reports))


def make_pairs(config: Config) -> list[RolloutPair]:
    """One response of the teacher and of the student to each prompt of `config.rollouts`, in memory.

    Raises:
        ConfigError: an engine that cannot hold two models in a process.
    """
    if config.teacher.engine == "vllm":
        raise ConfigError(
            "teacher.engine vllm holds one model a process, and make_pairs needs two: set it to hf, or run jobs.rollouts"
        )
    section, seed = config.rollouts, config.run.seed
    tokenizer = load_tokenizer(resolve_model(config.student.path))
    prompts, _ = read_prompts(section, config.prompt, config.world, tokenizer)
    prompts = with_samples(prompts, section.samples)
    batches = [prompts[i : i + section.batch_size] for i in range(0, len(prompts), section.batch_size)]
    responses = []
    for path, engine_seed in ((config.teacher.path, 2 * seed), (config.student.path, 2 * seed + 1)):
        engine = load_engine(config.teacher, path, use="generate")
        responses.append(
            [made for batch in batches for made in engine.generate(batch, section.sampling, seed=engine_seed)]
        )
    return [
        RolloutPair(id=p.id, question=p.question, prompt_ids=p.ids, teacher_ids=t.ids, student_ids=s.ids)
        for p, t, s in zip(prompts, *responses, strict=True)
    ]


def distil(
    config: Config,
    pairs: Sequence[RolloutPair],
    *,
    student: Student | None = None,
    teacher: Engine | None = None,
    judge: Judge | None = None,
    run_dir: Path | None = None,
) -> Trained:
    """Distil the teacher into the student on these pairs.

    Args:
        config: `distill`, `student`, `teacher` and `judge` are read, and `rollouts.refresh`.
        pairs: responses of both models; `make_pairs`, `read_pairs`, or your own.
        student: what is trained; None: the configured one is loaded.
        teacher: what answers for the teacher; None: the configured one is loaded.
        judge: what judges; None: the configured one is loaded, where the objective needs one.
        run_dir: where responses and student versions are kept that the run makes; None: nowhere.

    Raises:
        ModelError: a model cannot be loaded, or models do not fit together.
        JudgeError: failed self-check, or too many scores that are no numbers.
    """
    if run_dir is None:
        with tempfile.TemporaryDirectory() as folder:
            return distil(config, pairs, student=student, teacher=teacher, judge=judge, run_dir=Path(folder))
    objective = config.distill.objective
    if student is None:
        student = assemble.student_to_distil(config, device_for(config.student.gpus_per_rank))
    batches, backend = assemble.make_batches(config, pairs, student, torch_backend)
    if teacher is None and objective.needs_teacher:
        teacher = load_engine(config.teacher, config.teacher.path, use="annotate")
    if judge is None and objective.needs_judge:
        judge = load_judge(config.judge, policy=config.student.path)
    signals = LocalSignals(
        teacher=teacher,
        judge=judge,
        request=assemble.make_teacher_request(config),
        only_at=judged_at(objective.weighting, student.tokenizer),
    )
    versions = None
    if config.needs_rollout_actors:
        engine = load_versioned_engine(config.rollouts.refresh, config.student, lora=config.distill.lora)
        source = LocalResponses(ResponseWriter(engine, WriterSettings.of(config)))
        versions = assemble.make_versions(
            config, backend=backend, batches=batches, source=source, run_dir=run_dir, pairs=pairs
        )
    distiller = assemble.make_distiller(
        config,
        backend=backend,
        batches=batches,
        signals=signals,
        teacher=assemble.Teacher.of(config, student.tokenizer),
        versions=versions,
    )
    trainer = Trainer(loop=distiller, backend=backend, section=config.distill, versions=versions)
    trainer.run()
    return Trained(student=student, reports=tuple(trainer.reports))
