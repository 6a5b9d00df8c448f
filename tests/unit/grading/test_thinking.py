"""Responses of reasoning models in two parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from vcrd_ray.config.base import THINKING, Thinking
from vcrd_ray.grading.thinking import decode_response, opens_thinking, read_answer


@pytest.mark.parametrize(
    ("text", "opened", "answer", "state"),
    [
        ("7", False, "7", "none"),
        ("<think>3</think> 7", False, " 7", "finished"),
        ("<think>\n</think>\n\n7", False, "7", "finished"),
        ("3</think>7", False, "7", "finished"),
        ("3</think>7", True, "7", "finished"),
        ("<think>3</think>7", True, "7", "finished"),
        ("a <think>3</think>b <think>4</think>c", False, "a b c", "finished"),
        ("<think>3</think>7</think>", False, "7", "finished"),
        ("<think>what does <think> mean</think>7", False, "7", "finished"),
        ("<think>7", False, "", "unfinished"),
        ("7 <think>8", False, "", "unfinished"),
        ("7", True, "", "unfinished"),
        ("", True, "", "unfinished"),
    ],
)
def test_the_answer_is_what_was_not_thought(text: str, opened: bool, answer: str, state: str) -> None:
    reading = read_answer(text, THINKING, opened=opened)
    assert (reading.answer, reading.thinking) == (answer, state)


def test_marks_of_other_families_are_a_setting() -> None:
    marks: Thinking = ("[THINK]", "[/THINK]")
    assert read_answer("[THINK]3[/THINK]7", marks).answer == "7"
    assert read_answer("<think>3</think>7", marks).answer == "<think>3</think>7"
    assert read_answer("<think>3</think>7", None).answer == "<think>3</think>7"


class Characters:
    """A tokenizer of characters with special tokens."""

    def __init__(self, *special: str) -> None:
        self.all_special_tokens = list(special)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        tokens = [self.all_special_tokens[i] if i < 10 else chr(i) for i in ids]
        return "".join(t for t, i in zip(tokens, ids, strict=True) if i >= 10 or not skip_special_tokens)


def test_marks_that_are_special_tokens_are_seen() -> None:
    tokenizer = Characters("</s>", "[THINK]", "[/THINK]")
    ids = np.asarray([1, ord("3"), 2, ord("7"), 0])
    assert decode_response(ids, tokenizer, ("[THINK]", "[/THINK]")) == "[THINK]3[/THINK]7"
    assert decode_response(ids, tokenizer, THINKING) == "37"


@pytest.mark.parametrize(
    ("prompt", "opens"), [("a <think>\n", True), ("a <think>", True), ("<think>\n\n</think>\n\n", False), ("a", False)]
)
def test_a_prompt_opens_the_thinking_where_it_ends_with_the_mark(prompt: str, opens: bool) -> None:
    ids = np.asarray([ord(c) for c in prompt])
    assert opens_thinking(ids, Characters(), THINKING) is opens
    assert not opens_thinking(ids, Characters(), None)
