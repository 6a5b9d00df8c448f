"""Jobs as their users start them: subprocesses in a checkout."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]


def start(*argv: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """`python -m jobs...` in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
    )


def run(*argv: str, code: int = 0) -> str:
    """Run a job to its end; its output."""
    process = start(*argv)
    try:
        output, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        kill_job(process)
        raise
    assert process.returncode == code, output[-4000:]
    return output


def kill_job(process: subprocess.Popen[str]) -> None:
    """SIGKILL a job and every process that it started."""
    whole = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in whole:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    process.communicate(timeout=60)
