"""Structured logs: JSON lines that say of which run, role, replica and update they are. Knows no Ray."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path

RUN_VARIABLE = "VCRD_RUN"
"""Environment variable that tells every process of a job which run it serves."""
_OWN = ("actors", "jobs", "vcrd_ray")
_identity: dict[str, object] = {"run": os.environ[RUN_VARIABLE]} if RUN_VARIABLE in os.environ else {}
"""Of the process: the threads that libraries start say it too."""
_update: ContextVar[int | None] = ContextVar("update", default=None)
"""Of the thread: a judge answers requests of several updates at once."""


class JsonLines(logging.Formatter):
    """One JSON object a record, with what `log_as` was told."""

    def format(self, record: logging.LogRecord) -> str:
        update = _update.get()
        row: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            **_identity,
            **({} if update is None else {"update": update}),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


def log_as(*, stderr: bool = False, update: int | None = None, **identity: object) -> None:
    """From now on records carry these fields too.

    Args:
        stderr: they go to standard error as JSON lines too: Ray keeps a file of it for each of its processes.
        update: what this thread works on, until it is told another; other threads' records do not carry it.
        identity: what this process is, such as run, role, replica: in the records of all its threads.
    """
    _identity.update(identity)
    if update is not None:
        _update.set(update)
    root = logging.getLogger()
    if stderr and not any(isinstance(handler.formatter, JsonLines) for handler in root.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLines())
        handler.setLevel(logging.INFO)
        root.addHandler(handler)
        root.setLevel(min(root.level or logging.INFO, logging.INFO))


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts off must not hide what a job has to say of that."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def log_to(directory: Path) -> list[logging.Handler]:
    """Handlers on the root logger: log.txt for people, log.jsonl for programs, and warnings on standard error.

    Only warnings of the project's own: an error ends the job, which says it.
    """
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(logging.Formatter("warning: %(message)s"))
    terminal.addFilter(lambda record: record.levelno == logging.WARNING and record.name.split(".")[0] in _OWN)
    handlers: list[logging.Handler] = [terminal]
    for name, formatter in (
        ("log.txt", logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")),
        ("log.jsonl", JsonLines()),
    ):
        file = _LogFile(directory / name, encoding="utf-8")
        file.setFormatter(formatter)
        file.setLevel(logging.INFO)
        handlers.append(file)
    root = logging.getLogger()
    root.setLevel(min(root.level or logging.INFO, logging.INFO))
    for handler in handlers:
        root.addHandler(handler)
    return handlers
