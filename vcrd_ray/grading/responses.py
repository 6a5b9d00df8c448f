"""Responses to problems with gold answers -> right or wrong, by the one grader that the golds ask for. No models, no files.

Golds that are all integers or decimals: the last number of a response (or the one behind `####`) is its answer. Any other
among them: math-verify, for all of them, so that one set has one rule; words are compared as words.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from vcrd_ray.config.base import Thinking
from vcrd_ray.data.final_answers import is_correct
from vcrd_ray.data.sources import Reject
from vcrd_ray.errors import DataError
from vcrd_ray.grading.golds import Gold, number_of, read_gold, tidy
from vcrd_ray.grading.mathematics import check_installed, is_readable, is_right, warm_up
from vcrd_ray.grading.protocol import Grade, Grader, Pending, Verdict, graded
from vcrd_ray.grading.stated import marked_answer, num_boxes, phrased_answer, says_words, words_of
from vcrd_ray.grading.thinking import ThinkingState, read_answer
from vcrd_ray.types import Prompt

GraderName = Literal["last_number", "math_verify"]

_MOST_WORKERS = 8
_PER_WORKER = 64  # responses that are worth the start of a process


@dataclass(frozen=True, kw_only=True, slots=True)
class Response:
    """What is graded."""

    gold: str | None
    """As the data have it: an answer, or a solution."""
    text: str
    opened: bool = False
    """Whether the prompt has opened the thinking."""
    cut_off: bool = False
    """Whether it ended at the length limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What became of it."""

    right: bool | None
    """Of the answer behind the thinking; None where the gold is none that a response could meet."""
    right_whole: bool | None
    """The same of the whole text, the thinking read as part of the answer."""
    verdict: str
    """Of the answer; `ungraded` without such a gold."""
    thinking: ThinkingState
    cut_off: bool


class ResponseGrader:
    """The grader of one set of golds. Time is limited: what is not decided within it is wrong, and its verdict says so."""

    def __init__(self, golds: Sequence[str | None], *, thinking: Thinking, source: str, cure: str) -> None:
        """
        Args:
            golds: of all problems, in any order; those that no response can meet are refused and counted.
            source: where they come from, for messages.
            cure: what to do where none is left.

        Raises:
            DataError: no gold is left.
            ConfigError: they need math-verify, which is not installed.
        """
        self.thinking = thinking
        read = {gold: read_gold(gold) for gold in dict.fromkeys(golds)}
        self._golds = {text: gold for text, gold in read.items() if isinstance(gold, Gold)}
        self.name: GraderName = "last_number"
        if any(gold.kind != "number" for gold in self._golds.values()):
            odd = next(gold.text for gold in self._golds.values() if gold.kind != "number")
            check_installed(otherwise=f"give golds of {source} that are plain numbers, which {odd!r} is not")
            self.name = "math_verify"
            unreadable = self._unreadable()
            read |= {text: "not readable" for text in unreadable}
            self._golds = {text: gold for text, gold in self._golds.items() if text not in unreadable}
        self._reasons = {text: reason for text, reason in read.items() if isinstance(reason, str)}
        reasons = [self._reasons[gold] for gold in golds if gold in self._reasons]
        self.refused: dict[str, int] = dict(sorted(Counter(reasons).items()))
        """How many golds are refused, by reason."""
        if not self._golds:
            shown = ", ".join(f"{count} {reason}" for reason, count in self.refused.items()) or "no problems"
            raise DataError(
                f"{source}: no prompt has a gold answer that a response could meet ({shown}); {cure}; solutions have it behind"
                " #### or in \\boxed{}"
            )

    def can_grade(self, gold: str | None) -> bool:
        """Whether a response could meet this gold."""
        return gold in self._golds

    def rejects(self, prompts: Sequence[Prompt]) -> list[Reject]:
        """Prompts whose golds are refused."""
        reasons = {prompt.id: self._reasons[prompt.gold] for prompt in prompts if prompt.gold in self._reasons}
        return [Reject(row=id, reason=f"gold answer: {reason}") for id, reason in reasons.items()]

    def grade(self, responses: Sequence[Response]) -> list[Checked]:
        """What became of each, in their order."""
        readings = [read_answer(r.text, self.thinking, opened=r.opened) for r in responses]
        known = [i for i, response in enumerate(responses) if self.can_grade(response.gold)]
        thought = [i for i in known if readings[i].thinking != "none"]
        pairs = [(self._golds[responses[i].gold], readings[i].answer) for i in known]
        pairs += [(self._golds[responses[i].gold], responses[i].text) for i in thought]
        grades = self._grades(pairs)
        answers = dict(zip(known, grades[: len(known)], strict=True))
        wholes = answers | dict(zip(thought, grades[len(known) :], strict=True))
        return [
            Checked(
                right=answers[i].correct if i in answers else None,
                right_whole=wholes[i].correct if i in answers else None,
                verdict=str(answers[i].verdict) if i in answers else "ungraded",
                thinking=readings[i].thinking,
                cut_off=response.cut_off,
            )
            for i, response in enumerate(responses)
        ]

    def _grades(self, pairs: Sequence[tuple[Gold, str]]) -> list[Grade]:
        if self.name == "last_number":
            return [graded(is_correct(text, gold.text), None) for gold, text in pairs]
        return _decided(pairs)

    def _unreadable(self) -> set[str | None]:
        """Golds that the library does not read, or not in time."""
        bad = _unreadable(tuple(gold for gold in self._golds.values() if gold.kind == "expression"))
        return {text for text, gold in self._golds.items() if gold in bad}


@lru_cache(maxsize=8)  # a job checks the golds before it begins, and again when it grades
def _unreadable(golds: tuple[Gold, ...]) -> frozenset[Gold]:
    grades = _decided([(gold, _ITSELF) for gold in golds])
    return frozenset(gold for gold, grade in zip(golds, grades, strict=True) if not grade.correct)


def _decided(pairs: Sequence[tuple[Gold, str]]) -> list[Grade]:
    # Its library is not there for numbers alone.
    from vcrd_ray.grading.pool import GradingPool, PoolLimits

    workers = max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)), len(pairs) // _PER_WORKER))
    with GradingPool(AnswerGrader(), PoolLimits(workers=workers)) as pool:
        return pool.grade(pairs)


_ITSELF = "\0"
"""In place of a response: can the gold be read at all?"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerGrader(Grader[Gold]):
    """What a response marks as its answer, else says, else what the library finds in it, against a gold of any kind."""

    def settle(self, item: Gold, reply: str) -> Grade | Pending[Gold]:
        """Words, numbers and empty responses are settled."""
        if reply == _ITSELF:
            return Pending(text=_ITSELF, gold=item.text)
        if not reply.strip():
            return Grade(verdict=Verdict.WRONG, prediction=None)
        if item.kind == "words":
            return graded(*says_words(reply, item.text))
        stated = _stated(reply)
        if stated is None:
            return Pending(text=reply, gold=item.text)
        if not stated:
            return Grade(verdict=Verdict.WRONG, prediction=None)
        number = number_of(stated)
        if item.kind == "number" and number is not None and (num_boxes(reply) < 2 or is_correct(number, item.text)):
            return graded(is_correct(number, item.text), number)
        # Several boxes may be one answer in parts.
        several = num_boxes(reply) > 1
        return Pending(text=reply if several else rf"\boxed{{{tidy(stated)}}}", gold=item.text)

    def decide(self, pending: Pending[Gold]) -> Grade:
        """Expressions compared as such: the last box, else what the library makes of all."""
        if pending.text == _ITSELF:
            return graded(is_readable(pending.gold), None)
        marked = marked_answer(pending.text)
        if marked:
            right, read = is_right(pending.gold, rf"\boxed{{{tidy(marked)}}}")
            if right or num_boxes(pending.text) < 2:
                return graded(right, read)
        return graded(*is_right(pending.gold, pending.text))

    def warm_up(self) -> None:
        """Load the library."""
        warm_up()


def _stated(reply: str) -> str | None:
    """The answer that a response marks, or says in a sentence without other words; None where the library has to look."""
    marked = marked_answer(reply)
    if marked is not None:
        return marked
    phrased = phrased_answer(reply)
    return phrased if phrased is not None and (number_of(phrased) or not words_of(phrased)) else None
