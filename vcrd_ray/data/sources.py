"""Rows of a file or of a data set -> problems. A malformed row is rejected with its reason, never dropped.

Knows nothing of file formats, tokenizers or models.
"""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from typing import Any

from vcrd_ray.config.data import HfPrompts
from vcrd_ray.data.json_rows import BadRow, RejectKind, check_whole, row_object, shown, text_of, value_of
from vcrd_ray.data.tables import RowsPrompts, on_hub, open_rows
from vcrd_ray.errors import DataError

_LOG = logging.getLogger(__name__)
_BAD_ROW_TEXT = 2000  # characters of a rejected row that are kept
_ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of the turns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One row of a data set."""

    id: str
    question: str
    solution: str | None
    """A worked solution that ends with the answer, where the data set has one."""
    system: str | None = None
    """The system turn of its chat, where it has one: part of the prompt, not of the question that judges are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """Something that was rejected."""

    row: str
    reason: str
    kind: RejectKind = "unusable"


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
    num_longer = 0
    for number, raw in zip(numbers, rows.take(numbers), strict=True):
        try:
            asked = _asked(section, row_object(raw))
        except BadRow as error:
            rejects.append(Reject(row=_row_text(raw), reason=f"row {number}: {error}", kind=error.kind))
            continue
        problems.append(
            Problem(id=f"{rows.name}-{number}", question=asked.question, solution=asked.solution, system=asked.system)
        )
        num_longer += asked.goes_on
    if not problems:
        first = f"; first reason: {rejects[0].reason}" if rejects else ""
        raise DataError(f"{rows.shown}: no usable row among {len(numbers)}{first}")
    if len(rejects) > section.max_reject_share * len(numbers):
        raise DataError(
            f"{rows.shown}: {len(rejects)} of {len(numbers)} rows are malformed, more than max_reject_share"
            f" {section.max_reject_share}; first reason: {rejects[0].reason}"
        )
    if rejects:
        _LOG.warning("%s: %d of %d rows are rejected; %s", rows.shown, len(rejects), len(numbers), rejects[0].reason)
    if num_longer:
        _LOG.warning(
            "%s: %d of %d chats go on after the first answer; their further turns are left out",
            rows.shown,
            num_longer,
            len(problems),
        )
    return problems, rejects


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    """What a row holds of a problem."""

    question: str
    solution: str | None
    system: str | None = None
    goes_on: bool = False
    """Whether its chat has turns beyond the question and its answer."""


def _asked(section: RowsPrompts, row: dict[str, Any]) -> _Asked:
    if section.messages_key is not None:
        turns = _turns(row, section.messages_key)
        return _chat(turns, section.messages_key, answered=section.answer_key is not None)
    question = text_of(row, section.question_key)
    return _Asked(question=question, solution=None if section.answer_key is None else text_of(row, section.answer_key))


def _turns(row: dict[str, Any], key: str) -> list[tuple[str, dict[str, Any]]]:
    """Role of each turn, and the turn with its text under `content`."""
    value = value_of(row, key)
    found = []
    for turn in value if isinstance(value, list) else [None]:
        match turn:
            case {"role": str(role), "content": content} | {"from": str(role), "value": content}:
                check_whole(role, "a role")
                found.append((_ROLES.get(role, role), {"content": content}))
            case _:
                raise BadRow("bad_chat", f"{key!r} is no list of turns with role and content, or from and value")
    return found


def _chat(turns: list[tuple[str, dict[str, Any]]], key: str, *, answered: bool) -> _Asked:
    roles = [role for role, _ in turns]
    if "user" not in roles:
        raise BadRow("bad_chat", f"{key!r} has no user turn (roles: {', '.join(roles)[:200] or 'none'})")
    at = roles.index("user")
    before, after = roles[:at], roles[at + 1 :]
    if before not in ([], ["system"]):
        raise BadRow("bad_chat", f"{key!r} has more than a system turn before the first user turn: {shown(before)}")
    question = text_of(turns[at][1], "content")
    if after[:1] != ["assistant"] and (answered or after):
        raise BadRow("bad_chat", f"{key!r} has no assistant turn directly after the first user turn")
    if after[1:2] not in ([], ["user"]):
        raise BadRow(
            "bad_chat", f"{key!r} has a turn of {shown(after[1])} after the first answer, which may belong to it"
        )
    return _Asked(
        question=question,
        solution=text_of(turns[at + 1][1], "content") if answered else None,
        # An empty system turn is one: templates put their own where there is none.
        system=text_of(turns[0][1], "content", blank=True) if before else None,
        goes_on=len(after) > 1,
    )


def _row_text(raw: object) -> str:
    """What is kept of a rejected row."""
    if isinstance(raw, bytes):
        return raw[: 4 * _BAD_ROW_TEXT].decode(errors="replace")[:_BAD_ROW_TEXT]
    try:
        return json.dumps(raw, default=str)[:_BAD_ROW_TEXT]
    except (RecursionError, ValueError, TypeError):
        return shown(raw)[:_BAD_ROW_TEXT]
