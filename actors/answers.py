"""Answers of a model to a benchmark through an engine pool; finished batches on disk are not asked for again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.pools import Pool
from vcrd_ray.config import SamplingSection
from vcrd_ray.evaluation.answers import Answer
from vcrd_ray.runs import read_jsonl, write_text
from vcrd_ray.types import Prompt, Rollout


def answer_all(
    pool: Pool,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    sampling: SamplingSection,
    tokenizer: Any,
    batch_size: int,
    directory: Path,
) -> Iterator[tuple[int, list[Answer]]]:
    """`samples` answers to each prompt: (number of the batch, its answers) as they come, those on disk first.

    Args:
        batch_size: answers of one generate call.
        directory: batches lie there, one file each.
    """
    directory.mkdir(parents=True, exist_ok=True)
    asked = [(prompt, sample) for sample in range(samples) for prompt in prompts]
    batches = [asked[i : i + batch_size] for i in range(0, len(asked), batch_size)]
    files = [directory / f"batch-{i:05d}.jsonl" for i in range(len(batches))]
    waiting = {}
    for index, (batch, file) in enumerate(zip(batches, files, strict=True)):
        if file.exists():
            yield index, [Answer.model_validate(row) for row in read_jsonl(file)]
        else:
            # Samples of one question are drawn apart by their names.
            named = [_renamed(prompt, sample) for prompt, sample in batch]
            waiting[pool.pick().generate.remote(named, sampling)] = index
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        index = waiting.pop(ready)
        answers = [
            _answer(prompt.id, sample, rollout, tokenizer)
            for (prompt, sample), rollout in zip(batches[index], ray.get(ready), strict=True)
        ]
        write_text(files[index], "".join(json.dumps(answer.model_dump()) + "\n" for answer in answers))
        yield index, answers


def _renamed(prompt: Prompt, sample: int) -> Prompt:
    return Prompt(id=f"{prompt.id}#{sample}", question=prompt.question, answer=None, ids=prompt.ids)


def _answer(id: str, sample: int, rollout: Rollout, tokenizer: Any) -> Answer:
    return Answer(
        id=id,
        sample=sample,
        # Graders cut at the mark that ends a turn: it must be there to be seen.
        text=tokenizer.decode(rollout.ids, skip_special_tokens=False),
        num_tokens=len(rollout.ids),
        finish_reason=rollout.finish_reason,
    )
