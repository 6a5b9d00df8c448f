"""One job as it is sent to a cluster. Knows neither Ray nor the network."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vcrd_ray.errors import VcrdError

PACKAGES = ("actors", "jobs", "vcrd_ray")
CONFIG_FOLDER = "submitted"
MASK = "***"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable that says how long Ray's job server waits between SIGTERM and SIGKILL."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class SubmissionError(VcrdError):
    """A job that cannot be sent, followed or stopped."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One job as it is sent."""

    id: str
    entrypoint: tuple[str, ...]
    """Command of the driver, run in the uploaded directory."""
    env: Mapping[str, str]
    """For the driver and all its actors. Ray keeps the values readable."""
    extra_config: Path | None = None
    """Config file that lies outside the uploaded packages; it travels as submitted/NAME."""
    driver_gpus: float = 0.0
    driver_role: str | None = None
    """Custom resource of the nodes on which the driver may run; none: the head."""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise SubmissionError(f"submission id {self.id!r}: letters, digits, dots, dashes and underscores only")

    @property
    def command(self) -> str:
        """The entrypoint for a shell."""
        return shlex.join(self.entrypoint)

    @property
    def driver_resources(self) -> dict[str, float]:
        """Custom resources that the driver itself asks for."""
        return {self.driver_role: 1.0} if self.driver_role else {}


def plain_line(submission: Submission, address: str) -> str:
    """The same submission by Ray's own command, from the project's root; values of variables are masked."""
    uploaded = [*PACKAGES, *([CONFIG_FOLDER] if submission.extra_config else [])]
    # Ray asks about the directory itself, too, by the name of a dot.
    runtime_env: dict[str, object] = {"excludes": ["/*", "!.", *(f"!/{name}" for name in uploaded)]}
    if submission.env:
        runtime_env["env_vars"] = {n: v if n == STOP_WAIT else MASK for n, v in submission.env.items()}
    words = ["ray", "job", "submit", "--address", address, "--submission-id", submission.id, "--working-dir", "."]
    words += ["--runtime-env-json", json.dumps(runtime_env)]
    if submission.driver_gpus:
        words += ["--entrypoint-num-gpus", f"{submission.driver_gpus:g}"]
    if submission.driver_resources:
        words += ["--entrypoint-resources", json.dumps(submission.driver_resources)]
    line = shlex.join([*words, "--", *submission.entrypoint])
    if submission.extra_config:
        line = f"mkdir -p {CONFIG_FOLDER} && cp {shlex.quote(str(submission.extra_config))} {CONFIG_FOLDER}/ && {line}"
    return line
