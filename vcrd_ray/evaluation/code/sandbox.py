"""A program that nobody trusts -> how it ended and what it printed. Knows nothing of Python, tests or benchmarks.

Isolation `namespaces`, on Linux 5.12 or later. The program runs in mount, PID, network, IPC and host-name namespaces of its
own; started by root it also has a uid of its own, started by anyone else a user namespace.
  Holds: it has no network, not even loopback; it sees the system's libraries, the directories named to it, four devices
  and nothing else of the file system, all read-only; it writes into a directory in memory that is bounded and gone with it;
  it sees and signals no process but its own; all of them end when the first one does or its time is over, daemons
  included; its environment holds what is named here; no descriptor but stdin, stdout and stderr is open.
  Does not hold: faults of the kernel, whose system calls are all open to it. Memory is limited for each process and not for
  all together: the most they can take is `processes` times `memory_bytes`, and `disk_bytes`. In a user namespace it reads
  the directories named to it with the rights of the user who started it.

Isolation `limits`, for machines that forbid namespaces (most containers do). Limits, an empty environment, a directory to
work in and the end of all its processes stay. It reaches the network. Started by root it gets a uid of its own and writes
only where everybody may; started by anyone else it can read, change and signal all that this user can. Nobody gets it
without asking for it.

Neither keeps a program from its judge: EvalPlus compares in the process that runs the program, as it did for published scores.
Who returns an object whose `__eq__` is always true, or a subclass of int with such a one, or patches what compares
(numpy.allclose, EvalPlus's own functions), passes without being right. Read the programs of a model that was rewarded for
passing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from vcrd_ray.errors import VcrdError
from vcrd_ray.evaluation.code import launcher

Isolation = Literal["namespaces", "limits"]

_LAUNCHER = Path(launcher.__file__)
_GRACE_S = 30
"""For a launcher that does not keep the time itself; a loaded machine is slow to start it."""


class SandboxError(VcrdError):
    """This machine cannot isolate a program, or not run one at all inside the walls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a program may use."""

    wall_s: float
    cpu_s: int
    """Of each process."""
    memory_bytes: int
    """Address space of each process."""
    processes: int
    """And threads, at a time."""
    file_bytes: int
    """Of each file, stdout and stderr among them."""
    disk_bytes: int
    """Of all files together; isolation `limits` has no such limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a program ended."""

    status: Literal["exited", "overtime"]
    code: int
    """Exit status; minus the signal's number where one ended it."""
    stdout: bytes
    stderr: str
    """Its last 2,000 characters."""


def run(
    argv: Sequence[str],
    *,
    stdin: Sequence[bytes | Path],
    env: dict[str, str],
    readable: Sequence[Path],
    limits: Limits,
    isolation: Isolation,
) -> Outcome:
    """Run a program inside the walls and wait for its end, which is the end of all that it started.

    It reads the parts of `stdin`, bytes or what is in a file, one after the other. Files stand for stdin, stdout and stderr:
    nothing can block on them, and the file limit bounds them.

    Raises:
        SandboxError: the walls cannot be put up, or the program cannot be started inside them.
    """
    with ExitStack() as stack:
        scratch = tempfile.mkdtemp(prefix="vcrd-sandbox-")
        stack.callback(_remove, scratch)
        given, stdout, stderr, report = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(4))
        _write(given, stdin)
        spec = launcher.Spec(
            isolation=isolation,
            argv=list(argv),
            env=env,
            scratch=scratch,
            readable=[str(path) for path in readable],
            report_fd=report.fileno(),
            wall_s=limits.wall_s,
            cpu_s=limits.cpu_s,
            memory_bytes=limits.memory_bytes,
            processes=limits.processes,
            file_bytes=limits.file_bytes,
            disk_bytes=limits.disk_bytes,
        )
        status = _launch(spec, stdin=given, stdout=stdout, stderr=stderr)
        said = _read(report)
        errors = _read(stderr)[-2000:].decode(errors="replace")
        if not said:
            raise SandboxError(f"the sandbox's launcher ended without a report (status {status}): {errors}")
        ended = json.loads(said)
        if ended["status"] == "unavailable":
            raise SandboxError(f"no isolation by {isolation} here: {ended['reason']}")
        return Outcome(status=ended["status"], code=ended["code"], stdout=_read(stdout), stderr=errors)


def _write(file: IO[bytes], parts: Sequence[bytes | Path]) -> None:
    for part in parts:
        if isinstance(part, bytes):
            file.write(part)
        else:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file, 1 << 20)
    file.seek(0)


def _launch(spec: launcher.Spec, *, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> int:
    """Start the launcher and wait for its end; its exit status."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(spec)],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={},
        cwd="/",
        pass_fds=[spec["report_fd"]],
        start_new_session=True,
    )
    try:
        process.wait(spec["wall_s"] + _GRACE_S)
    finally:
        # The program dies with its launcher.
        process.kill()
        process.wait()
    return process.returncode


def check_isolation(*, allow_network: bool) -> Isolation:
    """What this machine can do: `namespaces`, or `limits` where it cannot and the caller lets programs reach the network.

    Raises:
        SandboxError: no namespaces, and none may be done without.
    """
    limits = Limits(wall_s=60, cpu_s=10, memory_bytes=1 << 30, processes=8, file_bytes=1 << 20, disk_bytes=1 << 20)
    try:
        outcome = run(["/bin/true"], stdin=[], env={}, readable=[], limits=limits, isolation="namespaces")
    except SandboxError as error:
        if allow_network:
            return "limits"
        raise SandboxError(
            f"{error}. Untrusted code needs a network namespace of its own: allow unprivileged user namespaces on this"
            " machine (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns; a container needs the"
            " capability SYS_ADMIN and no AppArmor profile against mounts), or set allow_network where the machine itself"
            " is one to throw away"
        ) from None
    if outcome.code != 0:
        raise SandboxError(f"/bin/true failed in the sandbox with status {outcome.code}: {outcome.stderr}")
    return "namespaces"


def _read(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _remove(scratch: str) -> None:
    """Remove the directory, also where its owner took away the rights to; what links in it point to stays as it is."""
    for folder, inner, _ in os.walk(scratch):
        for path in (os.path.join(folder, name) for name in inner):
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(scratch)
