"""What a reasoning model wrote -> its answer, without what it thought before. Knows no grading."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vcrd_ray.config.base import Thinking
from vcrd_ray.types import IntArray

_PROMPT_END = 64
"""Tokens at the end of a prompt in which a template opens the thinking."""

ThinkingState = Literal["none", "finished", "unfinished"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A response in two parts."""

    answer: str
    """Without the thinking; empty where that does not end."""
    thinking: ThinkingState


def read_answer(text: str, thinking: Thinking, *, opened: bool = False) -> Reading:
    """Take the thinking off a response.

    A response to a prompt that has opened the thinking has its end only; so has one that shows a closing mark first.
    Unfinished thinking leaves no answer.

    Args:
        opened: the prompt ends with the opening mark.
    """
    if thinking is None:
        return Reading(answer=text, thinking="none")
    start, end = thinking
    inside = opened
    kept: list[str] = []
    parts = re.split(f"({re.escape(start)}|{re.escape(end)})", text)
    for at, part in enumerate(parts):
        if at % 2 == 0:
            kept += [] if inside else [part]
        elif part == start:
            inside = True
        else:
            # Nothing has opened what the first mark closes: all before it was thought.
            kept = [] if at == 1 else kept
            inside = False
    if inside:
        return Reading(answer="", thinking="unfinished")
    if len(parts) == 1:
        return Reading(answer=text, thinking="none")
    return Reading(answer="".join(kept).lstrip("\n"), thinking="finished")


def opens_thinking(prompt_ids: IntArray | Sequence[int], tokenizer: Any, thinking: Thinking) -> bool:
    """Whether a prompt ends with the opening mark, as some templates have it: the response then begins inside."""
    if thinking is None:
        return False
    end: str = tokenizer.decode(prompt_ids[-_PROMPT_END:], skip_special_tokens=False)
    return end.rstrip().endswith(thinking[0])


def decode_response(ids: IntArray | Sequence[int], tokenizer: Any, thinking: Thinking) -> str:
    """A response as text without special tokens, but for the marks of the thinking where they are such."""
    marks = set(thinking or ()) & set(tokenizer.all_special_tokens)
    text: str = tokenizer.decode(ids, skip_special_tokens=not marks)
    for token in set(tokenizer.all_special_tokens) - marks if marks else ():
        text = text.replace(token, "")
    return text
