"""Data sets -> problems, policy prompts and gold examples. A malformed row is put aside with its reason, never dropped.

Knows nothing of models beyond their tokenizer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vcrd_ray.config import JsonlPrompts, Prompts, TinyPrompts
from vcrd_ray.errors import DataError
from vcrd_ray.runs import write_text
from vcrd_ray.tiny.world import WorldConfig, make_problem, sample_solution
from vcrd_ray.types import IntArray, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BAD_ROW_TEXT = 2000  # characters of a rejected row that are kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One row of a data set."""

    id: str
    question: str
    solution: str | None
    """A worked solution that ends with the answer, where the data set has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """A row that was put aside."""

    row: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A prompt and the gold response to it, as token ids."""

    id: str
    prompt_ids: IntArray
    response_ids: IntArray


def read_problems(section: Prompts, world: WorldConfig) -> tuple[list[Problem], list[Reject]]:
    """All problems of a section.

    Raises:
        DataError: the file is missing, nothing usable is in it, or too many rows are malformed.
    """
    if isinstance(section, TinyPrompts):
        return [
            _tiny_problem(section, world, index) for index in range(section.start, section.start + section.count)
        ], []
    return _read_jsonl(section)


def _tiny_problem(section: TinyPrompts, world: WorldConfig, index: int) -> Problem:
    problem = make_problem(world, seed=section.seed, index=index)
    rng = random.Random(f"solution-{section.seed}-{index}")
    return Problem(
        id=f"tiny-{section.seed}-{index}",
        question=problem.question,
        solution=sample_solution(problem, rng, num_ways=world.num_ways),
    )


def _read_jsonl(section: JsonlPrompts) -> tuple[list[Problem], list[Reject]]:
    if not section.path.is_file():
        raise DataError(f"{section.path}: no such file; give a JSON Lines file as prompts.path")
    lines = [line for line in section.path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    stop = None if section.count is None else section.start + section.count
    problems: list[Problem] = []
    rejects: list[Reject] = []
    numbered = list(enumerate(lines))
    if section.shuffle_seed is not None:
        random.Random(section.shuffle_seed).shuffle(numbered)
    for number, line in numbered[section.start : stop]:
        try:
            problems.append(_jsonl_problem(section, number, line))
        except ValueError as error:
            rejects.append(Reject(row=line[:_BAD_ROW_TEXT], reason=f"row {number}: {error}"))
    read = len(problems) + len(rejects)
    if not problems:
        first = f"; first reason: {rejects[0].reason}" if rejects else ""
        raise DataError(f"{section.path}: no usable row among {read}{first}")
    if len(rejects) > section.max_reject_share * read:
        raise DataError(
            f"{section.path}: {len(rejects)} of {read} rows are malformed, more than max_reject_share"
            f" {section.max_reject_share}; first reason: {rejects[0].reason}"
        )
    return problems, rejects


def _jsonl_problem(section: JsonlPrompts, number: int, line: str) -> Problem:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object")
    solution = _text(row, section.answer_key) if section.answer_key else None
    return Problem(id=f"{section.path.stem}-{number}", question=_text(row, section.question_key), solution=solution)


def _text(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise ValueError(f"no key {key!r} (there are: {', '.join(sorted(row)) or 'none'})")
    value = row[key]
    text = value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None
    if text is None or not text.strip():
        raise ValueError(f"{key!r} is no text: {value!r}")
    return text


def tokenize_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[list[Prompt], list[Reject]]:
    """Policy prompts through the chat template; too long ones are rejected.

    Raises:
        DataError: no prompt is short enough.
    """
    prompts: list[Prompt] = []
    rejects: list[Reject] = []
    for problem in problems:
        ids = prompt_ids(problem.question, tokenizer)
        if len(ids) > max_length:
            reason = f"prompt of {len(ids)} tokens is longer than {max_length}"
            rejects.append(Reject(row=problem.id, reason=reason))
            continue
        prompts.append(Prompt(id=problem.id, question=problem.question, answer=problem.solution, ids=ids))
    if not prompts:
        raise DataError(f"no prompt is left of {len(problems)}: all are longer than {max_length} tokens")
    return prompts, rejects


def prompt_ids(question: str, tokenizer: PreTrainedTokenizerBase) -> IntArray:
    """The question as the policy is asked it."""
    if tokenizer.chat_template is None:
        raise DataError(
            "the policy's tokenizer has no chat template; use one that has, or add it to tokenizer_config.json"
        )
    message = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def make_examples(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, *, max_length: int
) -> tuple[list[Example], list[Reject]]:
    """Gold examples for supervised fine-tuning, the end-of-sequence token appended.

    Raises:
        DataError: no example is left.
    """
    examples: list[Example] = []
    rejects: list[Reject] = []
    for problem in problems:
        if problem.solution is None:
            rejects.append(Reject(row=problem.id, reason="no solution to learn from"))
            continue
        prompt = prompt_ids(problem.question, tokenizer)
        response = tokenizer(problem.solution, add_special_tokens=False)["input_ids"]
        ids = np.asarray([*response, tokenizer.eos_token_id], dtype=np.int32)
        if len(prompt) + len(ids) > max_length:
            reason = f"prompt and response of {len(prompt) + len(ids)} tokens are longer than {max_length}"
            rejects.append(Reject(row=problem.id, reason=reason))
            continue
        examples.append(Example(id=problem.id, prompt_ids=prompt, response_ids=ids))
    if not examples:
        first = f"; first reason: {rejects[0].reason}" if rejects else ""
        raise DataError(f"no example to train on among {len(problems)} problems{first}")
    return examples, rejects


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """Rejected rows with their reasons as JSON Lines; no file where nothing was rejected."""
    if rejects:
        write_text(path, "".join(json.dumps({"reason": r.reason, "row": r.row}) + "\n" for r in rejects))
