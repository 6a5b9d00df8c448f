"""Benchmark files -> items with the question as asked and the gold as graded. Knows nothing of prompts or replies.

Fields, order and transforms are those of Qwen2.5-Math's evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcrd_ray.data.json_rows import BadRow, check_whole, objects, shown, text_of, value_of
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.math.extract import AnswerKind, raw_answer
from vcrd_ray.evaluation.math.normalize import strip_string
from vcrd_ray.evaluation.math.shots import MULTIPLE_CHOICE_SHOTS, Shot

Row = dict[str, Any]

_QUESTION_KEYS = ("question", "problem", "Question", "input")
_GOLDS_TO_SUFFIX = {
    "true": " (True or False)",
    "false": " (True or False)",
    "yes": " (Yes or No)",
    "no": " (Yes or No)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class MathItem:
    """One question of a benchmark."""

    set: str
    idx: int | str
    """Position in the file where the data have none of their own."""
    question: str
    """As asked, the choices or "(Yes or No)" appended."""
    gold: str
    """Normalised, as the published evaluation writes it; empty where the rules leave nothing of the answer."""
    graded_gold: str
    """What published scores compare with: normalised once more than `gold`, or once less if read from a solution."""
    raw_gold: str
    """As the data have it."""
    kind: AnswerKind


@dataclass(frozen=True, kw_only=True, slots=True)
class MathSet:
    """How to read one benchmark's rows."""

    name: str
    question: Callable[[Row], str]
    answer: Callable[[Row], str]
    """The raw gold."""
    kind: AnswerKind = "open"
    shots: tuple[Shot, ...] = ()
    """Worked examples that published scores were made with."""


def own_set(name: str, *, question_key: str, answer_key: str) -> MathSet:
    """Anybody's JSON Lines file."""
    return MathSet(name=name, question=_text(question_key), answer=_text(answer_key))


def published_set(name: str) -> MathSet:
    """A benchmark by name.

    Raises:
        DataError: there is none of this name.
    """
    if name not in PUBLISHED_SETS:
        raise DataError(f"no benchmark is called {name!r}; there are {', '.join(PUBLISHED_SETS)}")
    return PUBLISHED_SETS[name]


def read_items(path: Path, math_set: MathSet) -> list[MathItem]:
    """All items of a file of JSON rows in the order of their `idx`.

    Raises:
        DataError: no such file, nothing in it, a row that is malformed, or two rows of one `idx`.
    """
    items: dict[int | str, MathItem] = {}
    for position, (where, row) in enumerate(objects(path, what=math_set.name)):
        item = _item(row, position, math_set, where)
        if item.idx in items:
            raise DataError(f"{where}: idx {item.idx} stands on an earlier line too; make each idx unique")
        items[item.idx] = item
    try:
        return [items[idx] for idx in sorted(items)]  # type: ignore[type-var]
    except TypeError:
        raise DataError(f"{math_set.name}: {path} mixes numbers and text as idx; write one or the other") from None


def _item(row: Row, position: int, math_set: MathSet, where: str) -> MathItem:
    try:
        raw_gold = math_set.answer(row)
        question = math_set.question(row)
        check_whole(str(row.get("idx")), "'idx'")
    except BadRow as error:
        raise DataError(f"{where}: {error}; correct the row, or leave it out") from None
    except (ValueError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{where}: not of the form of {math_set.name}: {error}; correct the row") from None
    gold, graded_gold = _golds(raw_gold, math_set)
    question = (question + _GOLDS_TO_SUFFIX.get(gold.lower(), "")).strip()
    if not question:
        raise DataError(f"{where}: the question is empty; fill it or leave the row out")
    idx = row.get("idx", position)
    if not isinstance(idx, int | str):
        raise DataError(f"{where}: idx is {shown(idx)}; write a number or text, or leave it out of all rows")
    return MathItem(
        set=math_set.name,
        idx=idx,
        question=question,
        gold=gold,
        graded_gold=graded_gold,
        raw_gold=raw_gold,
        kind=math_set.kind,
    )


def _golds(raw_gold: str, math_set: MathSet) -> tuple[str, str]:
    """`gold` and `graded_gold`."""
    if math_set.kind == "open_with_units":
        gold = strip_string(raw_gold, keep_units=True)
        return gold, gold
    once = strip_string(raw_gold)
    twice = strip_string(once)
    return (twice, once) if math_set.answer is _boxed_in_solution else (once, twice)


def _text(key: str) -> Callable[[Row], str]:
    # An answer of True or False stands for that word.
    return lambda row: str(row[key]) if isinstance(row.get(key), bool) else text_of(row, key)


def _any_question(row: Row) -> str:
    return text_of(row, next((key for key in _QUESTION_KEYS if key in row), _QUESTION_KEYS[0]))


def _boxed_in_solution(row: Row) -> str:
    return raw_answer(text_of(row, "solution"), "open")


def _after_mark(row: Row) -> str:
    parts = text_of(row, "answer").split("####")
    if len(parts) != 2:
        raise ValueError(f"{len(parts) - 1} marks #### in the answer instead of one")
    return parts[1].strip()


def _without_dollars(row: Row) -> str:
    # Three of the published answers are empty, and published scores count them.
    return text_of(row, "answer", blank=True).replace("$", "").strip()


def _first_answer(row: Row) -> str:
    answers = value_of(row, "final_answer")
    first = answers[0] if isinstance(answers, list) and answers else None
    return text_of({"final_answer": first}, "final_answer").strip("$")


def _body_and_question(row: Row) -> str:
    body, question = text_of(row, "Body").strip(), text_of(row, "Question").strip()
    return f"{body if body.endswith('.') else body + '.'} {question}"


def _question_and_choices(row: Row) -> str:
    choices = text_of(row, "options").strip()
    if not choices.startswith("A"):
        raise ValueError("the options do not begin with A")
    for letter in "BCD":
        choices = choices.replace(f" {letter}) ", f" ({letter}) ")
    return f"{text_of(row, 'question').strip()}\nAnswer Choices: ({choices}"


def _set(name: str, answer: Callable[[Row], str], **others: Any) -> MathSet:
    return MathSet(**{"name": name, "question": _any_question, "answer": answer, **others})


PUBLISHED_SETS: Mapping[str, MathSet] = {
    math_set.name: math_set
    for math_set in (
        _set("gsm8k", _after_mark),
        _set("math", _boxed_in_solution),
        _set("math500", _text("answer")),
        _set("svamp", _text("Answer"), question=_body_and_question),
        _set("minerva_math", _boxed_in_solution, kind="open_with_units"),
        _set("gaokao2023en", _without_dollars),
        _set("olympiadbench", _first_answer),
        _set("amc23", _text("answer")),
        _set("aime24", _text("answer")),
        _set(
            "sat_math",
            _text("Answer"),
            question=_question_and_choices,
            kind="choice",
            shots=MULTIPLE_CHOICE_SHOTS,
        ),
        _set("cmath", _text("answer")),
    )
}
