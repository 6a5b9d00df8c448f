"""One command inside walls: namespaces, limits, and nothing left alive after it. Knows nothing of what the command does.

A program of its own (`launcher.py SPEC`, the spec as JSON) that needs only the standard library, so that no thread, lock or
secret of its caller comes along. `vcrd_ray.evaluation.code.sandbox` starts it and says what the walls hold and do not hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
from pathlib import Path
from typing import Literal, TypedDict

# linux/sched.h, linux/mount.h, linux/prctl.h, asm-generic/unistd.h
_NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # mount, uts, ipc, pid, net
_NEW_USER = 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_READ_ONLY = 1 | 2 | 4  # and no set-user-id programs, no devices
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38

_NOBODY = 65534
_FIRST_UNUSED_UID = 0x60000000
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_PROC_COPIES = ("/proc/meminfo", "/proc/stat", "/proc/cpuinfo")

_libc = ctypes.CDLL(None, use_errno=True)


class Spec(TypedDict):
    """What to run, and within what."""

    isolation: Literal["namespaces", "limits"]
    argv: list[str]
    env: dict[str, str]
    scratch: str
    """An empty directory: mount point of the new root, or itself the place to write in where there is none."""
    readable: list[str]
    """Directories that the command may read besides the system's."""
    report_fd: int
    wall_s: float
    cpu_s: int
    memory_bytes: int
    processes: int
    file_bytes: int
    disk_bytes: int


def main(spec: Spec) -> None:
    """Run the command of `spec` and write how it ended to the report's descriptor."""
    os.set_inheritable(spec["report_fd"], False)
    os.umask(0o022)  # the command's user shall see what is made here
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        if spec["isolation"] == "namespaces":
            uid, work = _enter_namespaces(), "/tmp"
            _build_root(Path(spec["scratch"]), spec, uid)
        else:
            uid, work = _contain(spec["scratch"]), spec["scratch"]
        report = _supervise(spec, uid, work)
    except OSError as error:
        report = {"status": "unavailable", "reason": str(error)}
    os.write(spec["report_fd"], json.dumps(report).encode())


def _supervise(spec: Spec, uid: int | None, work: str) -> dict[str, str | int]:
    """Start the command, wait within the wall clock, and leave no process of it behind."""
    ready, failed = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ready)
            _become(spec, uid, work, failed)
        except BaseException as error:
            os.write(failed, f"{error} (as user {os.getuid()})".encode())
        finally:
            os._exit(127)
    os.close(failed)
    overtime = False

    def stop(signum: int, frame: object) -> None:
        nonlocal overtime
        overtime = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, spec["wall_s"])
    reason = os.read(ready, 4096).decode(errors="replace")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    # The end of a PID namespace's first process is the end of all in it.
    if spec["isolation"] == "limits":
        _kill_descendants(uid)
    if reason:
        return {"status": "unavailable", "reason": reason}
    return {"status": "overtime" if overtime else "exited", "code": code}


def _enter_namespaces() -> int | None:
    """New namespaces of all kinds but time and cgroup; the uid the command shall have, None for the one it already has."""
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 and _libc.unshare(_NAMESPACES) == 0:
        return _unused_uid()
    _check(_libc.unshare(_NAMESPACES | _NEW_USER), "new user and network namespaces")
    # Not 0 inside: the command then loses every capability over these namespaces where it is executed.
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_NOBODY} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{_NOBODY} {gid} 1")
    return None


def _unused_uid() -> int:
    """A uid that owns nothing and that no other process has, so that the process limit counts this sandbox alone."""
    wanted = _FIRST_UNUSED_UID + os.getpid()
    for line in Path("/proc/self/uid_map").read_text().splitlines():
        first, _, count = (int(field) for field in line.split())
        if first <= wanted < first + count:
            return wanted
    return _NOBODY


def _build_root(root: Path, spec: Spec, uid: int | None) -> None:
    """A root in memory that holds the readable directories, read-only, four devices and two places to write in."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
    _mount("tmpfs", str(root), "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={spec['disk_bytes']},nr_inodes=100000,mode=755")
    for path in _SYSTEM:
        _show(root, path)
    for path in spec["readable"]:
        _show(root, path)
    for path in _DEVICES:
        inside = _inside(root, path)
        inside.touch()
        _mount(path, str(inside), None, _MS_BIND, None)
    # Copies, not the file system: no other process is to be seen. psutil and the C library read these.
    for path in _PROC_COPIES:
        _inside(root, path).write_bytes(Path(path).read_bytes())
    for path in ("/tmp", "/dev/shm"):
        inside = _inside(root, path)
        inside.mkdir(exist_ok=True)  # a readable directory may lie below
        if uid is not None:
            os.chown(inside, uid, uid)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def _show(root: Path, path: str) -> None:
    """Make a path of the host visible at the same place, read-only; one that is not there, or already shown, is left out."""
    inside = root / path.lstrip("/")
    if not os.path.lexists(path) or os.path.lexists(inside):
        return
    _inside(root, path)
    if os.path.islink(path):
        os.symlink(os.readlink(path), inside)
        return
    if os.path.isdir(path):
        inside.mkdir()
    else:
        inside.touch()
    _mount(path, str(inside), None, _MS_BIND | _MS_REC, None)
    attributes = (ctypes.c_uint64 * 4)(_READ_ONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    number = ctypes.c_long(_MOUNT_SETATTR)
    target = ctypes.c_char_p(os.fsencode(inside))
    result = _libc.syscall(number, _AT_FDCWD, target, _AT_RECURSIVE, ctypes.byref(attributes), size)
    _check(result, f"a read-only mount of {path}")


def _inside(root: Path, path: str) -> Path:
    """Where a path of the host lies under the new root, its parents made."""
    inside = root / path.lstrip("/")
    inside.parent.mkdir(parents=True, exist_ok=True)
    return inside


def _contain(scratch: str) -> int | None:
    """Without namespaces: another uid where that is possible, and orphans come to this process to be ended."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    if os.geteuid() != 0:
        return None
    uid = _unused_uid()
    os.chown(scratch, uid, uid)
    return uid


def _become(spec: Spec, uid: int | None, work: str, failed: int) -> None:
    """Take on the limits, drop what privileges there are, and turn into the command."""
    processes = spec["processes"]
    if spec["isolation"] == "limits" and uid is None:
        processes += _count_tasks(os.getuid())  # the limit counts all that this user runs
    for limit, value in (
        (resource.RLIMIT_CPU, spec["cpu_s"]),
        (resource.RLIMIT_AS, spec["memory_bytes"]),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, spec["file_bytes"]),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (allowed, allowed))
    os.chdir(work)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # After the change of uid, which clears it. The launcher may have died before: then nobody reads the pipe.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(failed, 0)
    if poll.poll(0):
        os._exit(127)
    os.execve(spec["argv"][0], spec["argv"], spec["env"] | {"HOME": work, "TMPDIR": work})


def _count_tasks(uid: int) -> int:
    """Threads of all processes of a user."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.stat().st_uid == uid:
                count += len(os.listdir(process / "task"))
        except OSError:
            continue  # it has just ended
    return count


def _kill_descendants(uid: int | None) -> None:
    """End all that the command left: by its uid where it had one of its own, else child by child until none is left."""
    if uid is not None and uid != _NOBODY:
        killer = os.fork()
        if killer == 0:
            try:
                os.setresuid(uid, uid, uid)
                os.kill(-1, signal.SIGKILL)  # all of this uid but the caller
            finally:
                os._exit(0)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while True:
        try:
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
            os.waitpid(-1, 0)
        except ProcessLookupError:
            continue
        except ChildProcessError:
            return


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None) -> None:
    text = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    result = _libc.mount(text[0], text[1], text[2], ctypes.c_ulong(flags), text[3])
    _check(result, f"a mount at {target}")


def _prctl(option: int, value: int) -> None:
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, ctypes.c_ulong(value), zero, zero, zero), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
