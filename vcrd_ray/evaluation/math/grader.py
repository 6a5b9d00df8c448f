"""An item and a reply -> a grade. Knows the rules of grading; not how many are graded at once, nor when to give up.

What a grader does with a reply has two parts: `settle` is cheap and bounded and settles most, `decide` may take any time and
memory and belongs into a process that may be killed (`pool`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal, Protocol

from vcrd_ray.errors import ConfigError
from vcrd_ray.evaluation.math.equality import math_equal, quick_verdict
from vcrd_ray.evaluation.math.extract import LETTERS, clean_choice, raw_answer
from vcrd_ray.evaluation.math.normalize import strip_string
from vcrd_ray.evaluation.math.sets import MathItem

_BOUNDED_CHARS = 1000
"""Up to this length normalising takes a moment whatever the answer is; some of its rules are quadratic."""

_STOP_MARKS = ("</s>", "<|im_end|>", "<|endoftext|>")
_WRAPPED = re.compile(r"\\(?:text|mbox|mathrm|textbf)\s*\{([^{}]*)\}")


class Verdict(StrEnum):
    """How a reply came out. Only `correct` counts."""

    CORRECT = "correct"
    WRONG = "wrong"
    TIMEOUT = "timeout"
    """Not decided within the time limit."""
    CRASHED = "crashed"
    """The process that should decide it died, as of memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """The verdict on one reply."""

    verdict: Verdict
    prediction: str | None
    """The answer that was read, in normal form; None where the reply is empty or was not read to the end."""

    @property
    def correct(self) -> bool:
        """Whether it counts."""
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending:
    """What has to be decided. Equal ones have equal verdicts."""

    text: str
    """The answer, or the whole reply where `item` is given."""
    gold: str
    item: MathItem | None = None


class Grader(Protocol):
    """Rules of grading. Picklable."""

    def settle(self, item: MathItem, reply: str) -> Grade | Pending:
        """The grade where it is cheap to tell, else what has to be decided."""
        ...

    def decide(self, pending: Pending) -> Grade:
        """The grade, at any cost."""
        ...

    def warm_up(self) -> None:
        """Load what the first decision would otherwise wait for."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class QwenGrader:
    """The rules of Qwen2.5-Math's evaluation.

    `reference` keeps to the program that published scores were made with, bugs included. `strict` differs in two points.
    An answer of no text never counts, so a gold that normalises to nothing is not passed by a reply without an answer; such
    golds are compared as they were before normalisation, but for text commands, blanks and case. And all golds are
    normalised like predictions, twice. Percentages, tolerance and brackets are judged alike in both.
    """

    mode: Literal["reference", "strict"]

    def settle(self, item: MathItem, reply: str) -> Grade | Pending:
        """Text, letters and numbers are settled; expressions and very long answers are not."""
        reply = _until_stop(reply)
        if not reply:
            return Grade(verdict=Verdict.WRONG, prediction=None)
        answer = raw_answer(reply, item.kind)
        if len(answer) > _BOUNDED_CHARS:
            return Pending(text=reply, gold=item.raw_gold, item=item)
        prediction, gold = self._read(item, reply, answer)
        settled = self._settle_read(item, answer, prediction, gold)
        return Pending(text=prediction, gold=gold) if settled is None else _grade(settled, prediction)

    def decide(self, pending: Pending) -> Grade:
        """Whether the answer equals the gold, expressions compared as such."""
        if pending.item is None:
            return _grade(math_equal(pending.text, pending.gold), pending.text)
        answer = raw_answer(pending.text, pending.item.kind)
        prediction, gold = self._read(pending.item, pending.text, answer)
        settled = self._settle_read(pending.item, answer, prediction, gold)
        return _grade(math_equal(prediction, gold) if settled is None else settled, prediction)

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
class VerifyGrader:
    """The rules of the library math-verify: sets without order, intervals by their ends, percentages by their value.

    Raises:
        ConfigError: the library is not installed.
    """

    def __post_init__(self) -> None:
        _math_verify()

    def settle(self, item: MathItem, reply: str) -> Grade | Pending:
        """Only an empty reply is settled."""
        if not reply.strip():
            return Grade(verdict=Verdict.WRONG, prediction=None)
        return Pending(text=reply, gold=item.raw_gold, item=item)

    def decide(self, pending: Pending) -> Grade:
        """Whether one of the answers read from the reply equals the gold."""
        assert pending.item is not None
        parse, verify = _math_verify()
        predicted = parse(pending.text, pending.item.gold in LETTERS)
        correct = bool(predicted) and verify(_verify_gold(pending.gold, pending.item.gold in LETTERS), predicted)
        return _grade(correct, str(predicted[-1]) if predicted else None)

    def warm_up(self) -> None:
        """Load the library."""
        parse, verify = _math_verify()
        verify(parse(r"\boxed{\frac{1}{2}}", False), parse("0.5", False))


@lru_cache(maxsize=4096)
def _verify_gold(raw_gold: str, letters: bool) -> list[object]:
    parse, _ = _math_verify()
    return parse(raw_gold if letters else rf"\boxed{{{raw_gold}}}", letters)


def _math_verify() -> tuple[Callable[[str, bool], list[object]], Callable[[list[object], list[object]], bool]]:
    """Its `parse` and `verify` without their alarms: time is limited by killing the process."""
    try:
        import math_verify  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(f"grader math_verify: {error}; install vcrd-ray[math] or take the grader qwen") from None
    import logging

    # It warns that it has no alarm.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    letter = math_verify.StringExtractionConfig(strings=LETTERS)
    open_configs = (math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig())

    def parse(text: str, letters: bool) -> list[object]:
        configs = (letter, *open_configs) if letters else open_configs
        return list(math_verify.parse(text, extraction_config=configs, parsing_timeout=None))

    def verify(gold: list[object], predicted: list[object]) -> bool:
        return bool(math_verify.verify(gold, predicted, timeout_seconds=None))

    return parse, verify


def _grade(correct: bool, prediction: str | None) -> Grade:
    return Grade(verdict=Verdict.CORRECT if correct else Verdict.WRONG, prediction=prediction)


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
