"""Rows of a file or of a data set -> problems. A malformed row is rejected with its reason, never dropped.

Knows nothing of file formats, tokenizers or models.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any, Literal

from vcrd_ray.config.data import HfPrompts
from vcrd_ray.data.tables import RowsPrompts, on_hub, open_rows
from vcrd_ray.errors import DataError

RejectKind = Literal[
    "not_utf8",
    "not_json",
    "not_an_object",
    "missing_key",
    "not_text",
    "bad_chat",
    "duplicate",
    "too_long",
    "no_solution",
    "unusable",
]
"""Why something was rejected, as it is counted. `unusable`: a rollout pair that cannot be trained on."""

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
    """Something that was rejected."""

    row: str
    reason: str
    kind: RejectKind = "unusable"


class _BadRow(ValueError):
    """Why a row is no problem."""

    def __init__(self, kind: RejectKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: RejectKind = kind


def check_rows(section: RowsPrompts, *, fetch: bool = True) -> bool:
    """Refuse a data set that is not there. Without `fetch` the hub is left alone.

    Returns:
        Whether it could be checked.

    Raises:
        DataError: no such file, folder, split or column.
    """
    if isinstance(section, HfPrompts) and not fetch and on_hub(section):
        return False
    open_rows(section)
    return True


def read_rows(section: RowsPrompts) -> tuple[list[Problem], list[Reject]]:
    """The problems of a data set, shuffled and cut out as asked, and the rejected rows.

    An id is the data set's name and the row's number in it, whatever the order.

    Raises:
        DataError: not there, nothing usable in it, or too many rows are malformed.
    """
    rows = open_rows(section)
    numbers = list(range(rows.size()))
    if section.shuffle_seed is not None:
        random.Random(section.shuffle_seed).shuffle(numbers)
    numbers = numbers[section.start : None if section.count is None else section.start + section.count]
    problems: list[Problem] = []
    rejects: list[Reject] = []
    for number, raw in zip(numbers, rows.take(numbers), strict=True):
        try:
            question, solution = _problem(section, raw)
            problems.append(Problem(id=f"{rows.name}-{number}", question=question, solution=solution))
        except _BadRow as error:
            shown = raw.decode(errors="replace") if isinstance(raw, bytes) else json.dumps(raw, default=str)
            rejects.append(Reject(row=shown[:_BAD_ROW_TEXT], reason=f"row {number}: {error}", kind=error.kind))
    if not problems:
        first = f"; first reason: {rejects[0].reason}" if rejects else ""
        raise DataError(f"{rows.shown}: no usable row among {len(numbers)}{first}")
    if len(rejects) > section.max_reject_share * len(numbers):
        raise DataError(
            f"{rows.shown}: {len(rejects)} of {len(numbers)} rows are malformed, more than max_reject_share"
            f" {section.max_reject_share}; first reason: {rejects[0].reason}"
        )
    return problems, rejects


def _problem(section: RowsPrompts, raw: object) -> tuple[str, str | None]:
    row = raw
    if isinstance(raw, bytes):
        try:
            row = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _BadRow("not_utf8", f"not UTF-8: {error}") from None
        except ValueError as error:
            raise _BadRow("not_json", f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise _BadRow("not_an_object", f"a {type(row).__name__}, not an object")
    if section.messages_key is not None:
        return _chat(row, section.messages_key, answered=section.answer_key is not None)
    return _text(row, section.question_key), _text(row, section.answer_key) if section.answer_key else None


def _value(row: dict[str, Any], key: str) -> object:
    if key not in row:
        raise _BadRow("missing_key", f"no key {key!r} (there are: {', '.join(sorted(row)) or 'none'})")
    return row[key]


def _text(row: dict[str, Any], key: str) -> str:
    value = _value(row, key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    text = value if isinstance(value, str) else str(value) if is_number else None
    if text is None or not text.strip():
        raise _BadRow("not_text", f"{key!r} is no text: {value!r}")
    return text


def _chat(row: dict[str, Any], key: str, *, answered: bool) -> tuple[str, str | None]:
    turns = _value(row, key)
    if not isinstance(turns, list) or not all(isinstance(t, dict) and "role" in t and "content" in t for t in turns):
        raise _BadRow("bad_chat", f"{key!r} is no list of turns with role and content")
    roles = [turn["role"] for turn in turns]
    if "user" not in roles:
        raise _BadRow("bad_chat", f"{key!r} has no user turn (roles: {', '.join(map(str, roles)) or 'none'})")
    at = roles.index("user")
    question = _text(turns[at], "content")
    if not answered:
        return question, None
    if roles[at + 1 : at + 2] != ["assistant"]:
        raise _BadRow("bad_chat", f"{key!r} has no assistant turn directly after the first user turn")
    return question, _text(turns[at + 1], "content")
