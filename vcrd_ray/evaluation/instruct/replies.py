"""Replies of a chat endpoint, kept on disk by what was asked. Knows no network and no key.

A SQLite file with its plain journal: a reply is on disk before it is used, a killed process leaves the file whole, and
several processes may share it, on a network file system too where that locks files.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vcrd_ray.errors import DataError

_FORMAT = 1
_LOCK_WAIT_S = 60.0


class Reply(BaseModel):
    """What came back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    """Empty where the endpoint sent none."""
    finish_reason: str | None
    served_model: str | None
    """What the endpoint says answered."""
    prompt_tokens: int | None = Field(ge=0)
    completion_tokens: int | None = Field(ge=0)
    """As billed; None where the endpoint does not count."""


class Refusal(BaseModel):
    """A request that the endpoint does not take as it is, such as one that is too long or filtered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: int
    message: str


def reply_key(*, judge: str, body: Mapping[str, Any]) -> str:
    """A hash of all that a reply depends on: who is asked, and the request's body with model, parameters and messages."""
    content = json.dumps([_FORMAT, judge, body], sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()


class ReplyCache:
    """Replies by key. Safe for several threads and several processes."""

    def __init__(self, path: Path) -> None:
        """Open the file at `path`, or make it.

        Raises:
            DataError: it cannot be opened, or is no such cache.
        """
        self.path = path.expanduser()
        self._turn = threading.Lock()  # for threads of one process; the file has locks of its own for processes
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=_LOCK_WAIT_S, check_same_thread=False)
            with self._connection:
                self._connection.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)"
                )
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from None

    def __enter__(self) -> ReplyCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __len__(self) -> int:
        with self._turn:
            try:
                (count,) = self._connection.execute("SELECT COUNT(*) FROM replies").fetchone()
            except sqlite3.Error as error:
                raise self._unusable(error) from None
        return int(count)

    def get(self, key: str) -> Reply | None:
        """What is kept under a key.

        Raises:
            DataError: the file cannot be read, or holds something else there.
        """
        with self._turn:
            return self._get(key)

    def keep(self, key: str, reply: Reply) -> Reply:
        """Keep a reply and return what is kept: where another process was first, its reply, so that both report the same.

        Raises:
            DataError: the file cannot be written.
        """
        with self._turn:
            try:
                with self._connection:
                    self._connection.execute(
                        "INSERT OR IGNORE INTO replies VALUES (?, ?)", (key, reply.model_dump_json())
                    )
            except sqlite3.Error as error:
                raise self._unusable(error) from None
            kept = self._get(key)
        assert kept is not None
        return kept

    def _get(self, key: str) -> Reply | None:
        try:
            row = self._connection.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        try:
            return None if row is None else Reply.model_validate_json(row[0])
        except ValidationError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> DataError:
        return DataError(
            f"judge replies: {self.path} cannot be used ({error}); free it or make room, or move it away to start again"
        )
