"""Answers of a model to held-out problems through an engine pool, graded. Knows no benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.pools.launch import engine_pool
from vcrd_ray.config import Config
from vcrd_ray.data.final_answers import is_correct
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.runs.files import write_text
from vcrd_ray.types import Prompt, Rollout


def answer_prompts(
    config: Config, model: str, directory: Path, prompts: Sequence[Prompt], *, on_batch: Callable[[int], None]
) -> tuple[int, int]:
    """Greedy (or sampled) answers to all prompts, graded; finished batches on disk are not repeated.

    Returns:
        (number of correct answers, number of answers cut off by the length limit)
    """
    section = config.evaluate
    directory.mkdir(parents=True, exist_ok=True)
    batches = [list(prompts[i : i + section.batch_size]) for i in range(0, len(prompts), section.batch_size)]
    files = [directory / f"batch-{i:05d}.jsonl" for i in range(len(batches))]
    missing = [i for i, file in enumerate(files) if not file.exists()]
    if missing:
        tokenizer = load_tokenizer(resolve_model(model))
        pool = engine_pool(config, path=model, role="evaluation", replicas=min(section.replicas, len(missing)))
        try:
            pool.wait_ready(config.cluster.start_timeout_s)
            waiting = {pool.pick().generate.remote(batches[i], section.sampling): i for i in missing}
            while waiting:
                (ready,), _ = ray.wait(list(waiting), num_returns=1)
                index = waiting.pop(ready)
                samples = [
                    _sample(prompt, rollout, tokenizer.decode(rollout.ids, skip_special_tokens=True))
                    for prompt, rollout in zip(batches[index], ray.get(ready), strict=True)
                ]
                write_text(files[index], "".join(json.dumps(sample) + "\n" for sample in samples))
                on_batch(len(samples))
        finally:
            pool.stop()
    graded = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return sum(s["correct"] for s in graded), sum(s["finish_reason"] == "length" for s in graded)


def _sample(prompt: Prompt, rollout: Rollout, text: str) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "question": prompt.question,
        "gold": prompt.answer,
        "response": text,
        "finish_reason": rollout.finish_reason,
        "num_tokens": len(rollout.ids),
        "correct": is_correct(text, prompt.answer),
    }
