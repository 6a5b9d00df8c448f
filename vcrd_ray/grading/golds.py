"""A gold answer or solution as data sets have it -> the final answer that it states, and how one compares with it. No models.

A gold that no response could meet is refused with the reason: it would count against every model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from vcrd_ray.grading.stated import is_words, last_line, marked_answer, phrased_answer, plain, words_of

GoldKind = Literal["number", "words", "expression"]
"""`number`: an integer or a decimal, with or without commas and a unit. `words`: one word, a choice's letter, a time, a ratio,
or what stands in \\text{}."""

Refused = Literal["no gold answer", "empty", "no final answer", "free text", "not readable"]
"""`free text` may be said in many ways, so that no comparison tells right from wrong."""

_MOST_WORDS = 12
"""Of an answer in words; what is longer is a solution."""
_SENTENCE = 4
"""Words beside an expression from which on it is a sentence."""
_SYMBOLS = 3
"""Letters in a row that may be a product of variables; more are a word."""
_CURRENCY = r"(?:\\?\$|€|£|¥)"
_UNIT = r"(?:[A-Za-z]{{{0},}}[\s.]+)*[A-Za-z]{{{0},}}[\s.]*"
_NUMBER = re.compile(
    rf"{_CURRENCY}?\s*(-?(?:\d{{1,3}}(?:,\d{{3}})+|\d+)(?:\.\d+)?)\s*(?:\\?%|°|{_CURRENCY}|({_UNIT.format(2)})?)"
)
_NO_UNITS = frozenset(
    re.findall(
        r"\w+",
        "pi hundred thousand million billion trillion dozen half halves third thirds quarter quarters am pm and or mod"
        " factorial squared cubed sqrt log ln",
    )
)
_SHORT_WORDS = frozenset(
    re.findall(r"\w+", "it is we so of the to in he she are has had get was be by as at for you they")
)
_IN_COMMAND = re.compile(r"\\(?:text|mbox|mathrm|textbf|operatorname|begin|end)\s*\{[^{}]*\}")
_FRACTION_WITH_UNIT = re.compile(
    r"(-?(?:\d+\s+)?\d+\s*/\s*\d+|-?\d*\\d?frac\{\d+\}\{\d+\})\s+"
    rf"({_UNIT.format(3)})"
)
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:(?: |\\,|\\ |\{,\})\d{3})+(?![\d])")
_MIXED = re.compile(r"(?<![\d.^{/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d.])")
_POWER_OF_TEN = re.compile(r"(?<![\w.])(-?\d+(?:\.\d+)?)[eE]([+-]?\d+)(?!\w)")
_BARE_PI = re.compile(r"(?<![\\A-Za-z])pi(?![A-Za-z])")
_FULL_WIDTH = {ord("−"): "-", ord("–"): "-", ord("±"): r"\pm ", **{ord("０") + i: str(i) for i in range(10)}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Gold:
    """What a response is compared with."""

    kind: GoldKind
    text: str
    """The number without unit; else the answer, tidied."""


@lru_cache(maxsize=1 << 16)
def read_gold(text: str | None) -> Gold | Refused:
    """The final answer of a gold, or why there is none.

    It stands behind the last `####`, in the last box, behind "the answer is", or is the whole text. A solution that marks
    nothing has one where its last line holds one number alone, or behind its last sign of equality.
    """
    if text is None:
        return "no gold answer"
    if not text.strip():
        return "empty"
    marked = marked_answer(text)
    stated = marked if marked is not None else phrased_answer(text) or text
    if marked is not None or not _is_solution(stated):
        return _gold(stated)
    number = _only_number(last_line(stated))
    return "no final answer" if number is None else Gold(kind="number", text=number)


def tidy(answer: str) -> str:
    """An answer as mathematics would be typeset: without dollar signs around it and a full stop, 1 1/2 as a mixed number,
    1 000 and 1e3 as numbers, and number words alone without their unit."""
    text = answer.translate(_FULL_WIDTH).strip().removesuffix(".").strip().strip("*").strip()
    for start, end in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(start) and text.endswith(end) and len(text) >= len(start + end):
            text = text[len(start) : -len(end)].strip()
    number = number_of(text)
    if number is not None and not text.endswith("%"):
        return number
    with_unit = _FRACTION_WITH_UNIT.fullmatch(text)
    if with_unit is not None and not _NO_UNITS & set(with_unit[2].lower().replace(".", " ").split()):
        text = with_unit[1]
    text = _SPACED_THOUSANDS.sub(lambda found: re.sub(r"\D", "", found[0]), text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    text = _POWER_OF_TEN.sub(r"\1 \\times 10^{\2}", text)
    return _BARE_PI.sub(r"\\pi", text)


def number_of(answer: str) -> str | None:
    """The integer or decimal that an answer is, without the unit beside it; None where it is anything else."""
    text = answer.strip().removesuffix(".").strip()
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1]
    found = _NUMBER.fullmatch(text.strip())
    if found is None or _NO_UNITS & set((found[2] or "").lower().replace(".", " ").split()):
        return None
    return found[1]


def _gold(stated: str) -> Gold | Refused:
    number = number_of(stated)
    if number is not None:
        return Gold(kind="number", text=number)
    if not plain(stated):
        return "no final answer"
    answer = tidy(stated)
    if is_words(stated):
        several = len(_bare_words(stated)) > 1 and re.search(r"\d", stated) is None
        return "free text" if several else Gold(kind="words", text=stated.strip())
    # A word beside an expression would be read as a product of its letters.
    if _has_words(answer):
        return "free text"
    return Gold(kind="expression", text=answer)


def _is_solution(text: str) -> bool:
    """Whether a text says more than an answer: sentences, or words before a sign of equality."""
    if "\n" in text.strip() or len(_bare_words(text)) > _MOST_WORDS:
        return True
    if is_words(text) or number_of(text) is not None:
        return False
    return len(_bare_words(text)) >= _SENTENCE or (_has_words(text) and ("=" in text or text[:1].isupper()))


def _has_words(text: str) -> bool:
    return any(len(word) > _SYMBOLS or word.lower() in _SHORT_WORDS for word in _bare_words(text))


def _bare_words(text: str) -> list[str]:
    return words_of(_IN_COMMAND.sub("", text))


def _only_number(line: str) -> str | None:
    """The one number of a line, or of what stands behind the last sign of equality of one equation."""
    if line.count("=") > 1 and re.search(r"[,;]|\b(?:and|or)\b", line):
        return None
    numeric = [token for token in line.rpartition("=")[2].split() if re.search(r"\d", token)]
    return number_of(numeric[0].strip("()*,;:")) if len(numeric) == 1 else None
