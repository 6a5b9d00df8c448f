"""Sections of the config -> problems, policy prompts and gold examples. What is rejected is kept with its reason.

Knows nothing of models beyond their tokenizer.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vcrd_ray.config.data import MixPrompts, Prompts, PromptSection, TinyPrompts
from vcrd_ray.config.stages import RolloutsSection
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.chat import as_data, chat_text, encode, prompt_ids, spells_special, template_fingerprint
from vcrd_ray.data.json_rows import BadRow
from vcrd_ray.data.mixture import drop_duplicates, mix
from vcrd_ray.data.sources import Problem, Reject, check_rows, read_rows
from vcrd_ray.errors import DataError
from vcrd_ray.runs.files import write_text
from vcrd_ray.tiny.world import make_problem, sample_solution
from vcrd_ray.types import IntArray, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)

__all__ = [
    "Example",
    "Problem",
    "Reject",
    "chat_text",
    "check_problems",
    "count_rejects",
    "make_examples",
    "prompt_ids",
    "read_problems",
    "read_prompts",
    "template_fingerprint",
    "tokenize_prompts",
    "write_rejects",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A prompt and the gold response to it, as token ids."""

    id: str
    prompt_ids: IntArray
    response_ids: IntArray


def check_problems(section: Prompts, *, fetch: bool = True) -> list[str]:
    """Refuse a section whose data sets are not there. Without `fetch` the hub is left alone.

    Returns:
        Names of the data sets that could not be checked.

    Raises:
        DataError: no such file, folder, split or column.
    """
    match section:
        case TinyPrompts():
            return []
        case MixPrompts():
            return [name for source in section.sources for name in check_problems(source.prompts, fetch=fetch)]
    return [] if check_rows(section, fetch=fetch) else [str(section.path)]


def read_problems(section: Prompts, world: WorldConfig) -> tuple[list[Problem], list[Reject]]:
    """All problems of a section, and what was rejected.

    Raises:
        DataError: a data set is missing, nothing usable is in it, too many rows are malformed, or it is too small.
    """
    match section:
        case TinyPrompts():
            indices = range(section.start, section.start + section.count)
            return [_tiny_problem(section, world, index) for index in indices], []
        case MixPrompts():
            read = [read_problems(source.prompts, world) for source in section.sources]
            problems, duplicates = mix([found for found, _ in read], section.counts(), seed=section.shuffle_seed)
            return problems, [*(reject for _, rejects in read for reject in rejects), *duplicates]
    return read_rows(section)


def _tiny_problem(section: TinyPrompts, world: WorldConfig, index: int) -> Problem:
    problem = make_problem(world, seed=section.seed, index=index)
    rng = random.Random(f"solution-{section.seed}-{index}")
    return Problem(
        id=f"tiny-{section.seed}-{index}",
        question=problem.question,
        solution=sample_solution(problem, rng, num_ways=world.num_ways),
    )


def read_prompts(
    section: RolloutsSection, prompt: PromptSection, world: WorldConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Prompt], list[Reject]]:
    """The prompts that responses are made to, each question once, and all that was rejected.

    Raises:
        DataError: as `read_problems` and `tokenize_prompts`.
    """
    problems, rejects = read_problems(section.prompts, world)
    duplicates: list[Reject] = []
    # The tiny world's problems are drawn, not collected: an equal one is another draw.
    if not isinstance(section.prompts, TinyPrompts):
        problems, duplicates = drop_duplicates(problems)
    prompts, too_long = tokenize_prompts(problems, tokenizer, prompt=prompt, max_length=section.max_prompt_length)
    return prompts, [*rejects, *duplicates, *too_long]


def tokenize_prompts(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    prompt: PromptSection = PromptSection(),
) -> tuple[list[Prompt], list[Reject]]:
    """Policy prompts through the template; too long ones, and those that it does not take, are rejected.

    Raises:
        DataError: no prompt is left, or rows have system turns where section `prompt` has no place for them.
    """
    prompts: list[Prompt] = []
    rejects: list[Reject] = []
    _check_turns(problems, tokenizer, prompt)
    for problem in problems:
        try:
            ids = prompt_ids(problem.question, tokenizer, prompt, system=problem.system)
        except BadRow as error:
            rejects.append(Reject(row=problem.id, reason=str(error), kind=error.kind))
            continue
        if len(ids) > max_length:
            reason = f"prompt of {len(ids)} tokens is longer than {max_length}"
            rejects.append(Reject(row=problem.id, reason=reason, kind="too_long"))
            continue
        prompts.append(Prompt(id=problem.id, question=problem.question, gold=problem.solution, ids=ids))
    others = [reject for reject in rejects if reject.kind != "too_long"]
    if others:
        said = f"{others[0].row}: {others[0].reason}"
        _LOG.warning(
            "%d of %d problems cannot be asked and are left out; the first, %s", len(others), len(problems), said
        )
    if not prompts:
        why = f"the first, {said}" if others else f"all are longer than {max_length} tokens"
        raise DataError(f"no prompt is left of {len(problems)}: {why}")
    return prompts, rejects


def _check_turns(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, prompt: PromptSection) -> None:
    """Refuse system turns that have no place beside section `prompt`, and say which texts spell control tokens."""
    own = next((problem.id for problem in problems if problem.system is not None), None)
    if own is not None and prompt.template == "raw":
        raise DataError(f"{own} has a system turn, which prompt.template raw has no place for: set it to chat")
    if own is not None and prompt.system is not None:
        raise DataError(f"{own} has a system turn of its own beside prompt.system: set prompt.system to null")
    texts = ((problem.id, (problem.system, problem.question, problem.solution)) for problem in problems)
    spelling = [id for id, parts in texts if any(part and spells_special(part, tokenizer) for part in parts)]
    if spelling:
        _LOG.warning(
            "%d of %d problems spell special tokens of the tokenizer (first: %s); they are read as plain text",
            len(spelling),
            len(problems),
            spelling[0],
        )


def make_examples(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    prompt: PromptSection = PromptSection(),
) -> tuple[list[Example], list[Reject]]:
    """Gold examples for supervised fine-tuning, the end-of-sequence token appended.

    Raises:
        DataError: no example is left, or rows have system turns where section `prompt` has no place for them.
    """
    examples: list[Example] = []
    rejects: list[Reject] = []
    _check_turns(problems, tokenizer, prompt)
    for problem in problems:
        if problem.solution is None:
            rejects.append(Reject(row=problem.id, reason="no solution to learn from", kind="no_solution"))
            continue
        try:
            asked = prompt_ids(problem.question, tokenizer, prompt, system=problem.system)
            response = encode(as_data(problem.solution, tokenizer), tokenizer, add_special_tokens=False)
        except BadRow as error:
            rejects.append(Reject(row=problem.id, reason=str(error), kind=error.kind))
            continue
        ids = np.asarray([*response, tokenizer.eos_token_id], dtype=np.int32)
        if len(asked) + len(ids) > max_length:
            reason = f"prompt and response of {len(asked) + len(ids)} tokens are longer than {max_length}"
            rejects.append(Reject(row=problem.id, reason=reason, kind="too_long"))
            continue
        examples.append(Example(id=problem.id, prompt_ids=asked, response_ids=ids))
    if not examples:
        first = f"; first reason: {rejects[0].reason}" if rejects else ""
        raise DataError(f"no example to train on among {len(problems)} problems{first}")
    return examples, rejects


def count_rejects(rejects: Sequence[Reject]) -> dict[str, int]:
    """How many there are of each kind, kinds in alphabetical order."""
    return dict(sorted(Counter(reject.kind for reject in rejects).items()))


def write_rejects(path: Path, rejects: Sequence[Reject]) -> None:
    """What was rejected with its kind and reason as JSON Lines; no file where nothing was rejected."""
    if rejects:
        write_text(
            path, "".join(json.dumps({"kind": r.kind, "reason": r.reason, "row": r.row}) + "\n" for r in rejects)
        )
