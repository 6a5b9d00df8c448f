"""What the end of a job means: its state in a line, its reason, the exit code. Knows neither Ray nor the network."""

from __future__ import annotations

import re
from typing import Any

from jobs.cli import EXIT_CAN_GO_ON

# What the shell says of a process that SIGTERM ended: Ray stops a driver with it.
EXIT_STOPPED = 143

_ERROR_LINE = re.compile(r"(config error|stopped|[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit))(:|$)")


def failure_reason(message: str | None) -> str:
    """The line of a job's closing message that names the error: the last one of an exception, or simply the last."""
    lines = [line.rstrip() for line in (message or "").splitlines() if line.strip()]
    named = [line for line in lines if _ERROR_LINE.match(line)]
    if named:
        return named[-1]
    return lines[-1].strip() if lines else "no reason given"


def exit_code(status: str, driver_code: int | None) -> int:
    """Exit code for a job that ended: its driver's own where it failed."""
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return EXIT_STOPPED
    if driver_code is not None and driver_code < 0:
        return 128 - driver_code
    return driver_code or 1


def state(info: Any) -> str:
    """One line; for a job that failed with its reason."""
    line = f"{info.submission_id}: {str(info.status).lower()}"
    if str(info.status) != "FAILED":
        return line
    if info.driver_exit_code == EXIT_CAN_GO_ON:
        return f"{info.submission_id}: {failure_reason(info.message)}"
    code = "" if info.driver_exit_code is None else f", exit code {info.driver_exit_code}"
    return f"{line}{code}: {failure_reason(info.message)}"
