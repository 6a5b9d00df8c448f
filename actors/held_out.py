"""Answers of a model to held-out problems through an engine pool, graded. Knows no benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.answers import ask_once
from actors.pools.launch import engine_pool
from vcrd_ray.config import Config
from vcrd_ray.data.final_answers import is_correct
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
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
    starts = range(0, len(prompts), section.batch_size)
    batches = {
        directory / f"batch-{i:05d}.jsonl": prompts[start : start + section.batch_size]
        for i, start in enumerate(starts)
    }
    missing = {file: batch for file, batch in batches.items() if not file.exists()}
    if missing:
        tokenizer = load_tokenizer(resolve_model(model))
        pool = engine_pool(config, path=model, role="evaluation", replicas=min(section.replicas, len(missing)))

        def samples(file: Path, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
            texts = [tokenizer.decode(rollout.ids, skip_special_tokens=True) for rollout in rollouts]
            return [_sample(*one) for one in zip(missing[file], rollouts, texts, strict=True)]

        try:
            pool.wait_ready(config.cluster.start_timeout_s)
            for _, rows in ask_once(pool, missing, section.sampling, rows_of=samples):
                on_batch(len(rows))
        finally:
            pool.stop()
    graded = [json.loads(line) for file in batches for line in file.read_text(encoding="utf-8").splitlines()]
    return sum(s["correct"] for s in graded), sum(s["finish_reason"] == "length" for s in graded)


def _sample(prompt: Prompt, rollout: Rollout, text: str) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "question": prompt.question,
        "gold": prompt.gold,
        "response": text,
        "finish_reason": rollout.finish_reason,
        "num_tokens": len(rollout.ids),
        "correct": is_correct(text, prompt.gold),
    }
