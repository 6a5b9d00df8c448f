"""Answers of a model to a benchmark through an engine pool; finished batches on disk are not asked for again.

And the actor that lm-evaluation-harness asks its questions in.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from actors.placement import actor_options, role_resources
from actors.pools.pool import Pool
from vcrd_ray.config import Config
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.evaluation.answers import Answer
from vcrd_ray.evaluation.harness import Harness
from vcrd_ray.models.checkpoint_files import device_for
from vcrd_ray.runs.files import read_jsonl, write_text
from vcrd_ray.types import Prompt, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweredBatch:
    """Answers of one generate call."""

    index: int
    answers: list[Answer]
    kept: bool
    """Whether an earlier run made them."""

    @property
    def num_tokens(self) -> int:
        """Of all answers."""
        return sum(answer.num_tokens for answer in self.answers)


def answer_all(
    pool: Pool,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    sampling: SamplingSection,
    tokenizer: Any,
    batch_size: int,
    directory: Path,
) -> Iterator[AnsweredBatch]:
    """`samples` answers to each prompt, batches as they come, those on disk first.

    Args:
        batch_size: answers of one generate call.
        directory: batches lie there, one file each; every call that was made is a line of DIRECTORY.log.jsonl.
    """
    directory.mkdir(parents=True, exist_ok=True)
    log = directory.with_name(f"{directory.name}.log.jsonl")
    asked = [(prompt, sample) for sample in range(samples) for prompt in prompts]
    batches = [asked[i : i + batch_size] for i in range(0, len(asked), batch_size)]
    index_of = {directory / f"batch-{i:05d}.jsonl": i for i in range(len(batches))}
    kept = {file for file in index_of if file.exists()}

    def answers(file: Path, rollouts: Sequence[Rollout]) -> list[dict[str, Any]]:
        pairs = zip(batches[index_of[file]], rollouts, strict=True)
        return [_answer(prompt.id, sample, rollout, tokenizer).model_dump() for (prompt, sample), rollout in pairs]

    # Samples of one question are drawn apart by their names.
    named = {file: [_renamed(*one) for one in batches[index]] for file, index in index_of.items()}
    for file, rows in ask_once(pool, named, sampling, rows_of=answers):
        index = index_of[file]
        batch = AnsweredBatch(index=index, answers=[Answer.model_validate(row) for row in rows], kept=file in kept)
        if not batch.kept:
            with log.open("a", encoding="utf-8") as lines:
                row = {"batch": index, "time": time.time(), "answers": len(rows), "tokens": batch.num_tokens}
                lines.write(json.dumps(row) + "\n")
        yield batch


def ask_once(
    pool: Pool,
    batches: Mapping[Path, Sequence[Prompt]],
    sampling: SamplingSection,
    *,
    rows_of: Callable[[Path, list[Rollout]], list[dict[str, Any]]],
) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    """Each batch's file with its rows: of those on disk first, then of the others as they are answered and written.

    Args:
        batches: prompts of one generate call, by the file that keeps what came of them.
        rows_of: what is kept of a batch's responses.
    """
    missing = {file: prompts for file, prompts in batches.items() if not file.exists()}
    # All are asked for before anything is handed on: what is done with kept batches must not hold up the engines.
    waiting = {pool.pick().generate.remote(list(prompts), sampling): file for file, prompts in missing.items()}
    for file in sorted(batches.keys() - missing.keys()):
        yield file, read_jsonl(file)
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        file = waiting.pop(ready)
        rows = rows_of(file, ray.get(ready))
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
        yield file, rows


def harness_pool(config: Config, model: str) -> Pool:
    """An actor with the teacher's resources that holds a model for lm-evaluation-harness."""
    resources = role_resources(config, "teacher")
    remote = ray.remote(_HarnessActor).options(**actor_options(resources))
    return Pool("evaluation", [remote.remote(config, model)], resources=resources)


class _HarnessActor(Harness):
    """Finds its device where it is placed."""

    def __init__(self, config: Config, model: str) -> None:
        torch.set_num_threads(config.teacher.threads)
        device = device_for(config.teacher.gpus_per_replica)
        super().__init__(config.evaluate.lm_eval, model, dtype=config.teacher.dtype, device=device)


def _renamed(prompt: Prompt, sample: int) -> Prompt:
    return Prompt(id=f"{prompt.id}#{sample}", question=prompt.question, gold=None, ids=prompt.ids)


def _answer(id: str, sample: int, rollout: Rollout, tokenizer: Any) -> Answer:
    return Answer(
        id=id,
        sample=sample,
        # Graders cut at the mark that ends a turn: it must be there to be seen.
        text=tokenizer.decode(rollout.ids, skip_special_tokens=False),
        num_tokens=len(rollout.ids),
        finish_reason=rollout.finish_reason,
    )
