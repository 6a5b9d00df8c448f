"""An item of a benchmark and a reply -> a grade. Knows not how many are graded at once, nor when to give up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from vcrd_ray.evaluation.math.equality import math_equal, quick_verdict
from vcrd_ray.evaluation.math.extract import LETTERS, clean_choice, raw_answer
from vcrd_ray.evaluation.math.normalize import strip_string
from vcrd_ray.evaluation.math.sets import MathItem
from vcrd_ray.grading.mathematics import check_installed, is_right, warm_up
from vcrd_ray.grading.protocol import Grade, Grader, Pending, Verdict, graded

_BOUNDED_CHARS = 1000
"""Up to this length normalising takes a moment whatever the answer is; some of its rules are quadratic."""

_STOP_MARKS = ("</s>", "<|im_end|>", "<|endoftext|>")
_WRAPPED = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}")


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenGrader(Grader[MathItem]):
    """The rules of Qwen2.5-Math's evaluation.

    `reference` keeps to the program that published scores were made with, bugs included. `strict` differs in two points.
    An answer of no text never counts, so a gold that normalises to nothing is not passed by a reply without an answer; such
    golds are compared as they were before normalisation, but for text commands, blanks and case. And all golds are
    normalised like predictions, twice. Percentages, tolerance and brackets are judged alike in both.
    """

    mode: Literal["reference", "strict"]

    def settle(self, item: MathItem, reply: str) -> Grade | Pending[MathItem]:
        """Text, letters and numbers are settled; expressions and very long answers are not."""
        reply = _until_stop(reply)
        if not reply:
            return Grade(verdict=Verdict.WRONG, prediction=None)
        answer = raw_answer(reply, item.kind)
        if len(answer) > _BOUNDED_CHARS:
            return Pending(text=reply, gold=item.raw_gold, item=item)
        prediction, gold = self._read(item, reply, answer)
        settled = self._settle_read(item, answer, prediction, gold)
        return Pending(text=prediction, gold=gold) if settled is None else graded(settled, prediction)

    def decide(self, pending: Pending[MathItem]) -> Grade:
        """Whether the answer equals the gold, expressions compared as such."""
        if pending.item is None:
            return graded(math_equal(pending.text, pending.gold), pending.text)
        answer = raw_answer(pending.text, pending.item.kind)
        prediction, gold = self._read(pending.item, pending.text, answer)
        settled = self._settle_read(pending.item, answer, prediction, gold)
        return graded(math_equal(prediction, gold) if settled is None else settled, prediction)

    def warm_up(self) -> None:
        """Load SymPy and its parsers."""
        from vcrd_ray.evaluation.math.symbolic import warm_up

        warm_up()

    def _read(self, item: MathItem, reply: str, answer: str) -> tuple[str, str]:
        """Prediction and gold in normal form."""
        keep_units = item.kind == "open_with_units"
        gold = item.graded_gold
        if self.mode == "strict" and not keep_units:
            gold = strip_string(item.gold)
        # Choices are cleaned rather than normalised when they are read.
        once = answer if item.kind == "choice" else strip_string(answer, keep_units=keep_units)
        prediction = strip_string(once, keep_units=keep_units)
        if item.gold in LETTERS and prediction not in LETTERS:
            return clean_choice(reply), gold
        # To the reference an empty gold is made of letters, too, so that any answer without letters passes it.
        if _only_letters(item.gold) and not _only_letters(prediction) and (item.gold or self.mode == "reference"):
            prediction = "".join(character for character in prediction if character in LETTERS)
        return prediction, gold

    def _settle_read(self, item: MathItem, answer: str, prediction: str, gold: str) -> bool | None:
        if self.mode == "strict" and not gold:
            plain = _plain(answer)
            return plain != "" and plain == _plain(item.raw_gold)
        return quick_verdict(prediction, gold)


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyGrader(Grader[MathItem]):
    """The rules of the library math-verify: sets without order, intervals by their ends, percentages by their value or number.

    It reads replies as the library does. What of its faults is mended stands in `vcrd_ray/grading/mathematics.py`.

    Raises:
        ConfigError: the library is not installed.
    """

    def __post_init__(self) -> None:
        check_installed(otherwise="take the grader qwen")

    def settle(self, item: MathItem, reply: str) -> Grade | Pending[MathItem]:
        """Only an empty reply is settled."""
        if not reply.strip():
            return Grade(verdict=Verdict.WRONG, prediction=None)
        return Pending(text=reply, gold=item.raw_gold, item=item)

    def decide(self, pending: Pending[MathItem]) -> Grade:
        """Whether one of the answers read from the reply equals the gold."""
        assert pending.item is not None
        correct, prediction = is_right(pending.gold, pending.text, letters=pending.item.gold in LETTERS)
        return graded(correct, prediction)

    def warm_up(self) -> None:
        """Load the library."""
        warm_up()


def _until_stop(reply: str) -> str:
    reply = reply.strip()
    for mark in _STOP_MARKS:
        reply = reply.split(mark)[0].strip()
    return reply


def _only_letters(text: str) -> bool:
    return all(character in LETTERS for character in text)


def _plain(answer: str) -> str:
    """Without text commands, dollar signs, blanks and case."""
    return re.sub(r"[\s$\\!]", "", _WRAPPED.sub(r"\1", answer)).lower().rstrip(".")
