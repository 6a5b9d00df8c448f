"""One seed of a comparison in this process: one fine-tuned student and one set of rollouts for all methods. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from vcrd_ray.config import Config
from vcrd_ray.config.methods import with_method
from vcrd_ray.data.problems import read_problems, tokenize_prompts
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.grading.responses import Response, ResponseGrader
from vcrd_ray.grading.thinking import decode_response, opens_thinking
from vcrd_ray.models.checkpoint_files import load_tokenizer
from vcrd_ray.runs.files import write_json
from vcrd_ray.training.in_process import distil, fine_tune, make_pairs
from vcrd_ray.types import RolloutPair

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
    pairs = make_pairs(config) if missing else []
    for method in missing:
        write_json(folder / f"{method}.json", _distil(with_method(config, method), pairs, folder / f"model-{method}"))


def _fine_tune(config: Config, folder: Path) -> Path:
    done = folder / "sft" / "model"
    if not done.exists():
        fine_tune(config).student.export(folder / "sft")
    return done


def _distil(config: Config, pairs: Sequence[RolloutPair], folder: Path) -> dict[str, Any]:
    trained = distil(config, pairs, run_dir=folder)
    reports = trained.reports
    seconds = sum(report.metrics["time/update_s"] for report in reports) / len(reports)
    trained.student.export(folder)
    judged = [r.metrics for r in reports if r.metrics["judge/judged_rows"]]
    figures: dict[str, Any] = {
        "accuracy": _accuracy(config, folder / "model"),
        "update_s": seconds,
        "loss": reports[-1].metrics["loss"],
    }
    for name in ("weights/strength", "weights/mean_judged", "weights/share_above_one_judged", "proposals/agreement"):
        figures[name] = sum(m[name] for m in judged) / len(judged) if judged else None
    return figures


def _accuracy(config: Config, model: Path) -> float:
    section, tokenizer = config.evaluate, load_tokenizer(model)
    problems, _ = read_problems(section.prompts, config.world)
    prompts, _ = tokenize_prompts(problems, tokenizer, prompt=config.prompt, max_length=2**31)
    engine = HFEngine(str(model), dtype="float32", device=torch.device("cpu"))
    golds, thinking, source = [prompt.gold for prompt in prompts], section.thinking, "evaluate.prompts"
    grader = ResponseGrader(golds, thinking=thinking, source=source, cure=f"set {source}.answer_key")
    responses: list[Response] = []
    for start in range(0, len(prompts), section.batch_size):
        batch = prompts[start : start + section.batch_size]
        for prompt, rollout in zip(batch, engine.generate(batch, section.sampling, seed=0), strict=True):
            text, opened = (
                decode_response(rollout.ids, tokenizer, thinking),
                opens_thinking(prompt.ids, tokenizer, thinking),
            )
            responses.append(Response(gold=prompt.gold, text=text, opened=opened))
    graded = [checked.right for checked in grader.grade(responses) if checked.right is not None]
    return sum(graded) / len(graded)
