"""What is sent to a cluster as a job, and what its end means. Knows neither Ray nor the network."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import sys
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vcrd_ray.errors import VcrdError

PACKAGES = ("actors", "jobs", "vcrd_ray")
ASIDE = "submitted"
MASK = "***"
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable that says how long Ray's job server waits between SIGTERM and SIGKILL."""
# What the shell says of a process that SIGTERM ended: Ray stops a driver with it.
EXIT_STOPPED = 143

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|APIKEY|(^|_)(KEY|PASS|AUTH|PAT)(_|$)", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_PLACE = re.compile(r"_(PATH|FILE|DIR|MODE)$", re.IGNORECASE)
# Shorter values stand in innocent text by chance.
_MIN_SECRET = 8
_MIB = 1024**2
# Ray's own limit is 512 MiB; code and configs are a few.
MAX_UPLOAD_MIB = 200
_ERROR_LINE = re.compile(r"(config error|stopped|[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit))(:|$)")


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
    aside: Path | None = None
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
    uploaded = [*PACKAGES, *([ASIDE] if submission.aside else [])]
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
    if submission.aside:
        line = f"mkdir -p {ASIDE} && cp {shlex.quote(str(submission.aside))} {ASIDE}/ && {line}"
    return line


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable seems to hold a secret itself, and not the place of one."""
    if _SECRET_VALUE.search(value):
        return True
    return bool(_SECRET_NAME.search(name)) and not _PLACE.search(name)


def chosen_variables(names: Iterable[str], visible: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Variables of this environment to send: `names`, and `visible` ones that may be secrets all the same.

    Raises:
        SubmissionError: a value instead of a name, a variable that is not set, a secret that would become readable.
    """
    visible = tuple(visible)
    chosen: dict[str, str] = {}
    for name in (*names, *visible):
        if not _VARIABLE.fullmatch(name):
            raise SubmissionError(
                f"--env {name.split('=')[0]}: give the name of a variable alone; its value is taken from this environment,"
                " so that it stands in no command line"
            )
        if name not in environ:
            raise SubmissionError(f"--env {name}: not set here; export it first")
        if looks_secret(name, environ[name]) and name not in visible:
            raise SubmissionError(
                f"--env {name}: looks like a secret, and Ray shows variables of a job to everybody who reaches its job"
                " server and keeps them readable in the logs of the nodes. Put it into a file or a secret of the"
                f" cluster instead, or accept that with --visible-env {name}"
            )
        chosen[name] = environ[name]
    return chosen


def check_no_secrets(text: str, environ: Mapping[str, str], *, where: str) -> None:
    """Refuse text that holds the value of a secret variable of this environment.

    Raises:
        SubmissionError: it does; names the variable, never the value.
    """
    for name, value in environ.items():
        if len(value) >= _MIN_SECRET and looks_secret(name, value) and value in text:
            raise SubmissionError(
                f"{where} holds the value of {name}: everybody who reaches the cluster could read it; take it out"
            )


def option_value(options: Sequence[str], name: str) -> str | None:
    """The value in `--name VALUE` or `--name=VALUE`; the last one counts, as for argparse."""
    found = None
    for word, following in zip(options, [*options[1:], None], strict=False):
        if word == name:
            found = following
        elif word.startswith(f"{name}="):
            found = word.removeprefix(f"{name}=")
    return found


def with_option(options: Sequence[str], name: str, value: str) -> list[str]:
    """The same options with another value for `name`, in front of them all."""
    kept = []
    previous = ""
    for word in options:
        if name not in (word, previous) and not word.startswith(f"{name}="):
            kept.append(word)
        previous = word
    return [name, value, *kept]


def stage(submission: Submission, root: Path, folder: Path) -> int:
    """Copy what travels with a job from the project's root into an empty folder; its bytes.

    Nothing but the packages and the config: whatever else lies in the root, keys and data included, stays here.

    Raises:
        SubmissionError: more than code and configs.
    """
    sizes = {
        file: file.stat().st_size
        for package in PACKAGES
        for file in sorted((root / package).rglob("*"))
        if file.is_file() and not any(p.startswith(".") or p == "__pycache__" for p in file.relative_to(root).parts)
    }
    total = sum(sizes.values())
    if total > MAX_UPLOAD_MIB * _MIB:
        largest = ", ".join(str(file.relative_to(root)) for file in sorted(sizes, key=lambda f: -sizes[f])[:3])
        raise SubmissionError(
            f"{total / _MIB:.0f} MiB would be uploaded and {MAX_UPLOAD_MIB} may be; models and data belong on the"
            f" cluster's storage. The largest: {largest}"
        )
    targets = {file: folder / file.relative_to(root) for file in sizes}
    if submission.aside is not None:
        targets[submission.aside] = folder / ASIDE / submission.aside.name
    for file, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return total


class LogPosition:
    """How much of a log was shown, for streams that begin at its start each time."""

    def __init__(self) -> None:
        self._shown = 0
        self._at = 0

    def restart(self) -> None:
        """The next text is from the beginning of the log."""
        self._at = 0

    def unseen(self, text: str) -> str:
        """The part of the next piece of the stream that was not shown yet; counts it as shown."""
        new = text[max(0, self._shown - self._at) :]
        self._at += len(text)
        self._shown = max(self._shown, self._at)
        return new


class JobClient(Protocol):
    """What following a job needs of Ray's job client."""

    def tail_job_logs(self, job_id: str) -> AsyncGenerator[str, None]: ...

    def get_job_info(self, job_id: str) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a follower waits."""

    silence_s: float = 300.0
    """A stream that died without a word looks like a silent job, so after this time it is opened anew. Not too often:
    on the head each leaves a reader behind until the job ends."""
    give_up_s: float = 900.0
    """Without any contact."""
    first_pause_s: float = 1.0
    max_pause_s: float = 30.0


async def follow_log(
    client: JobClient, job: str, *, lost: tuple[type[Exception], ...], patience: Patience = Patience()
) -> Any:
    """Print a job's log without gaps or repetitions, over as many connections as it takes; its details at the end.

    `lost` are the errors of a connection that may come back.

    Raises:
        SubmissionError: the cluster does not know the job, or did not answer for too long.
    """
    position = LogPosition()
    contact, pause, said = time.monotonic(), patience.first_pause_s, False
    while True:
        position.restart()
        try:
            async with aclosing(client.tail_job_logs(job)) as stream:
                while (text := await _next(stream, patience.silence_s)) is not None:
                    print(position.unseen(text), end="", flush=True)
                    contact, pause, said = time.monotonic(), patience.first_pause_s, False
            info = client.get_job_info(job)
            if info.status.is_terminal():
                return info
            contact, pause, said = time.monotonic(), patience.first_pause_s, False
        except lost as error:
            if "status code 404" in str(error):
                raise SubmissionError(f"{job}: the cluster knows no such job; --list shows those it knows") from None
            if time.monotonic() - contact > patience.give_up_s:
                raise SubmissionError(
                    f"no contact for {patience.give_up_s:g} s ({failure_reason(str(error))}); the job may go on:"
                    f" --follow {job}"
                ) from None
            if not said:
                print(f"connection lost ({failure_reason(str(error))}); trying again", file=sys.stderr, flush=True)
                said = True
            pause = min(2 * pause, patience.max_pause_s)
        await asyncio.sleep(pause)


async def _next(stream: AsyncGenerator[str, None], silence_s: float) -> str | None:
    """The next piece; none at the end of the stream, and where it says nothing for too long."""
    try:
        async with asyncio.timeout(silence_s):
            return await anext(stream, None)
    except TimeoutError:
        return None


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
