"""Answers of a model to held-out problems through an engine pool, graded. Knows no benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.answers import ask_once
from actors.pools.launch import engine_pool
from vcrd_ray.config import Config
from vcrd_ray.config.base import Thinking
from vcrd_ray.grading.responses import Checked, Response, ResponseGrader
from vcrd_ray.grading.thinking import decode_response, opens_thinking
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.types import Prompt, Rollout


def answer_prompts(
    config: Config,
    model: str,
    directory: Path,
    prompts: Sequence[Prompt],
    *,
    grader: ResponseGrader,
    on_batch: Callable[[int], None],
) -> list[Checked]:
    """Greedy (or sampled) answers to all prompts, graded, in their order; finished batches on disk are not repeated."""
    section = config.evaluate
    directory.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(prompts), section.batch_size)
    batches = {
        directory / f"batch-{i:05d}.jsonl": prompts[start : start + section.batch_size]
        for i, start in enumerate(starts)
    }
    missing = {file: batch for file, batch in batches.items() if not file.exists()}
    tokenizer = load_tokenizer(resolve_model(model))
    if missing:
        pool = engine_pool(config, path=model, role="evaluation", replicas=min(section.replicas, len(missing)))

        def samples(file: Path, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
            rows = [_sample(*one, tokenizer, section.thinking) for one in zip(missing[file], rollouts, strict=True)]
            return _graded(rows, missing[file], grader, tokenizer)

        try:
            pool.wait_ready(config.cluster.start_timeout_s)
            for _, rows in ask_once(pool, missing, section.sampling, rows_of=samples):
                on_batch(len(rows))
        finally:
            pool.stop()
    rows = []
    for file, batch in batches.items():
        kept = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        # Earlier versions graded everything by its last number.
        rows += kept if all("verdict" in row for row in kept) else _graded(kept, batch, grader, tokenizer)
    return [
        Checked(
            right=row["correct"],
            right_whole=row["correct_whole"],
            verdict=row["verdict"],
            thinking=row["thinking"],
            cut_off=row["finish_reason"] == "length",
        )
        for row in rows
    ]


def _sample(prompt: Prompt, rollout: Rollout, tokenizer: Any, thinking: Thinking) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "question": prompt.question,
        "gold": prompt.gold,
        "response": decode_response(rollout.ids, tokenizer, thinking),
        "finish_reason": rollout.finish_reason,
        "num_tokens": len(rollout.ids),
    }


def _graded(
    rows: Sequence[dict[str, Any]], prompts: Sequence[Prompt], grader: ResponseGrader, tokenizer: Any
) -> list[dict[str, Any]]:
    responses = [
        Response(
            gold=row["gold"],
            text=row["response"],
            opened=opens_thinking(prompt.ids, tokenizer, grader.thinking),
            cut_off=row["finish_reason"] == "length",
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    return [
        row | {"correct": c.right, "correct_whole": c.right_whole, "verdict": c.verdict, "thinking": c.thinking}
        for row, c in zip(rows, grader.grade(responses), strict=True)
    ]
