"""The suite leaves nothing behind: no process, no file in the checkout, nothing in the machine's temporary directory.

What a session starts inherits its environment, so that a process is known by a variable of its own even after those
that started it are gone. Temporary files, and Ray's, go to a directory of the session: two sessions side by side share none.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
VARIABLE = "VCRD_TEST_SESSION"
_PATIENCE_S = 20.0
# Caches of tools, which are there to stay.
_CACHES = {
    ".git",
    ".hypothesis",
    ".import_linter_cache",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".venv",
    "__pycache__",
}
# Ends with the process that tests run in.
_OF_PYTHON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def files_of(root: Path) -> Iterator[Path]:
    """All files of a checkout but for caches."""
    for directory, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _CACHES and not name.endswith(".egg-info")]
        yield from (Path(directory, name) for name in files)


def processes_of(name: str) -> list[psutil.Process]:
    """Living processes that were started, by whomever, in the session of that name."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.environ().get(VARIABLE) != name:
                continue
            ended = process.status() == psutil.STATUS_ZOMBIE or any(
                t in " ".join(process.cmdline()) for t in _OF_PYTHON
            )
        except psutil.Error:
            continue
        if not ended:
            found.append(process)
    return found


class Session:
    """One run of tests, from its first moment to its last."""

    def __init__(self) -> None:
        # Directly under /tmp: sockets lie in it, and their paths have a limit.
        self.directory = Path(tempfile.mkdtemp(prefix="vt-", dir="/tmp"))
        self._before = set(files_of(ROOT))
        os.environ |= {VARIABLE: self.directory.name, "TMPDIR": str(self.directory), "RAY_TMPDIR": str(self.directory)}
        tempfile.tempdir = None

    def left_behind(self) -> list[str]:
        """What is there that was not there before, a line each. Processes get some seconds to end."""
        until = time.monotonic() + _PATIENCE_S
        while (alive := processes_of(self.directory.name)) and time.monotonic() < until:
            time.sleep(0.2)
        lines = []
        for process in alive:
            try:
                lines.append(f"process {process.pid}: {' '.join(process.cmdline())[:200]}")
            except psutil.Error:
                continue
        return lines + [f"file {path}" for path in sorted(set(files_of(ROOT)) - self._before)]

    def close(self, *, keep: bool) -> None:
        """Remove the session's directory, unless somebody may want to look at it."""
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)
