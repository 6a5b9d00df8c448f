"""One seed of a comparison in this process: one fine-tuned student and one set of rollouts for all methods. No Ray."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from vcrd_ray.config import Config
from vcrd_ray.config.methods import with_method
from vcrd_ray.data.final_answers import is_correct
from vcrd_ray.data.manifest import with_samples
from vcrd_ray.data.problems import make_examples, read_problems, read_prompts, tokenize_prompts
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.engines.loading import load_versioned_engine
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.judges.requests import judged_at
from vcrd_ray.models.backend.torch import TorchBackend
from vcrd_ray.models.checkpoint_files import load_head, load_tokenizer, resolve_model
from vcrd_ray.models.student import Student
from vcrd_ray.runs.files import write_json
from vcrd_ray.training.batches import Batches
from vcrd_ray.training.distiller import Distiller, JudgeBounds, teacher_request
from vcrd_ray.training.on_policy.publisher import Publisher
from vcrd_ray.training.on_policy.response_log import ResponseLog
from vcrd_ray.training.on_policy.rollouts import OnPolicyRollouts
from vcrd_ray.training.on_policy.writer import LocalResponses, ResponseWriter, WriterSettings
from vcrd_ray.training.sft import FineTuner
from vcrd_ray.training.signals import LocalSignals
from vcrd_ray.types import RolloutPair, UpdateReport

FINE_TUNED = "sft"
"""The student before distillation: a row of every table."""


def run_trial(config: Config, methods: Sequence[str], *, seed: int, folder: Path) -> None:
    """All methods on one seed, one JSON file each in `folder`; finished ones are not repeated."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()  # a bar for each of many small models
    missing = [m for m in (FINE_TUNED, *methods) if not (folder / f"{m}.json").exists()]
    if not missing:
        return
    config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed, "dir": folder})})
    base = _fine_tune(config, folder)
    config = config.model_copy(update={"student": config.student.model_copy(update={"path": str(base)})})
    if FINE_TUNED in missing:
        write_json(folder / f"{FINE_TUNED}.json", {"accuracy": _accuracy(config, base)})
        missing.remove(FINE_TUNED)
    pairs = _rollouts(config) if missing else []
    for method in missing:
        write_json(folder / f"{method}.json", _distil(with_method(config, method), pairs, folder / f"model-{method}"))


def _fine_tune(config: Config, folder: Path) -> Path:
    done = folder / "sft" / "model"
    if done.exists():
        return done
    student = Student(config.student, lora=None, train_head=True, device=torch.device("cpu"), seed=config.run.seed)
    problems, _ = read_problems(config.sft.prompts, config.world)
    examples, _ = make_examples(problems, student.tokenizer, prompt=config.prompt, max_length=config.sft.max_length)
    backend = TorchBackend(student, config.sft.optim, num_updates=config.sft.num_updates or 1)
    tuner = FineTuner(
        backend=backend,
        examples=examples,
        section=config.sft,
        seed=config.run.seed,
        vocab_size=len(student.tokenizer),
    )
    tuner.run(first_update=0, stop=tuner.num_updates, on_update=lambda report: None)
    backend.export(folder / "sft")
    return done


def _rollouts(config: Config) -> list[RolloutPair]:
    section = config.rollouts
    tokenizer = load_tokenizer(resolve_model(config.student.path))
    prompts, _ = read_prompts(section, config.prompt, config.world, tokenizer)
    prompts = with_samples(prompts, section.samples)
    responses = []
    for path, seed in ((config.teacher.path, 2 * config.run.seed), (config.student.path, 2 * config.run.seed + 1)):
        engine = HFEngine(path, dtype="float32", device=torch.device("cpu"))
        size = section.batch_size
        batches = (prompts[i : i + size] for i in range(0, len(prompts), size))
        responses.append([r for batch in batches for r in engine.generate(batch, section.sampling, seed=seed)])
    return [
        RolloutPair(id=p.id, question=p.question, prompt_ids=p.ids, teacher_ids=t.ids, student_ids=s.ids)
        for p, t, s in zip(prompts, *responses, strict=True)
    ]


def _distil(config: Config, pairs: Sequence[RolloutPair], folder: Path) -> dict[str, Any]:
    section, seed, cpu = config.distill, config.run.seed, torch.device("cpu")
    student = Student(config.student, lora=section.lora, train_head=section.train_head, device=cpu, seed=seed)
    backend = TorchBackend(student, section.optim, num_updates=section.num_updates or 1)
    judge = load_judge(config.judge, policy=config.student.path) if section.objective.needs_judge else None
    batches = Batches(pairs, section, seed=seed, rank=0, world_size=1)
    reports: list[UpdateReport] = []
    distiller = Distiller(
        backend=backend,
        teacher_head=load_head(resolve_model(config.teacher.path), dtype="float32"),
        signals=LocalSignals(
            teacher=HFEngine(config.teacher.path, dtype="float32", device=cpu),
            judge=judge,
            request=teacher_request(section, config.teacher, seed=seed),
            only_at=judged_at(section.objective.weighting, student.tokenizer),
        ),
        batches=batches,
        on_policy=_on_policy(config, batches, backend, folder),
        section=section,
        vocab_size=len(student.tokenizer),
        judge_bounds=JudgeBounds(max_invalid_share=config.judge.max_invalid_share, self_check_tolerance=None),
    )
    started = time.perf_counter()
    distiller.run(first_update=0, stop=distiller.num_updates, on_update=reports.append)
    seconds = (time.perf_counter() - started) / distiller.num_updates
    backend.export(folder)
    judged = [r.metrics for r in reports if r.metrics["judge/judged_rows"]]
    figures: dict[str, Any] = {
        "accuracy": _accuracy(config, folder / "model"),
        "update_s": seconds,
        "loss": reports[-1].metrics["loss"],
    }
    for name in ("weights/strength", "weights/mean_judged", "weights/share_above_one_judged", "proposals/agreement"):
        figures[name] = sum(m[name] for m in judged) / len(judged) if judged else None
    return figures


def _on_policy(config: Config, batches: Batches, backend: TorchBackend, folder: Path) -> OnPolicyRollouts | None:
    section = config.rollouts.refresh
    if not section.on:
        return None
    engine = load_versioned_engine(section, config.student, lora=config.distill.lora)
    return OnPolicyRollouts(
        section,
        batches,
        source=LocalResponses(ResponseWriter(engine, WriterSettings.of(config))),
        publisher=Publisher(backend=backend, run_dir=folder, pairs=batches.pairs, merged=section.sync == "merged"),
        responses=ResponseLog(folder, decode=backend.student.tokenizer.decode),
    )


def _accuracy(config: Config, model: Path) -> float:
    section, tokenizer = config.evaluate, load_tokenizer(model)
    problems, _ = read_problems(section.prompts, config.world)
    prompts, _ = tokenize_prompts(problems, tokenizer, prompt=config.prompt, max_length=2**31)
    engine = HFEngine(str(model), dtype="float32", device=torch.device("cpu"))
    correct = 0
    for start in range(0, len(prompts), section.batch_size):
        batch = prompts[start : start + section.batch_size]
        for prompt, rollout in zip(batch, engine.generate(batch, section.sampling, seed=0), strict=True):
            correct += is_correct(tokenizer.decode(rollout.ids, skip_special_tokens=True), prompt.answer)
    return correct / len(prompts)
