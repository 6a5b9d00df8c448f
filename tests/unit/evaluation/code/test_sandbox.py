"""What the sandbox holds, shown by programs that try to get out. Every program is bounded by small limits."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from vcrd_ray.evaluation.code.sandbox import Isolation, Limits, Outcome, SandboxError, check_isolation, run

pytestmark = pytest.mark.slow

_LIMITS = Limits(wall_s=20, cpu_s=10, memory_bytes=512 << 20, processes=6, file_bytes=1 << 20, disk_bytes=4 << 20)


def _interpreter() -> str:
    """One that other users may start: where tests run as root, the sandbox's user is another one."""
    return shutil.which("python3", path="/usr/local/bin:/usr/bin") or sys.executable


def _run(code: str, *argv: str, isolation: Isolation, limits: Limits = _LIMITS, stdin: bytes = b"") -> Outcome:
    return run(
        [_interpreter(), "-I", "-S", "-c", code, *argv],
        stdin=[stdin],
        env={"LANG": "C.UTF-8"},
        readable=[Path(sys.prefix), Path(sys.base_prefix)],
        limits=limits,
        isolation=isolation,
    )


def _running(token: str) -> list[str]:
    """Ids of the processes that have a word in their command lines."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # Zombies have no command line.
            if token.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.fixture(params=["namespaces", "limits"])
def isolation(request: pytest.FixtureRequest) -> Isolation:
    if request.param == "namespaces":
        try:
            check_isolation(allow_network=False)
        except SandboxError as error:
            pytest.skip(str(error))
        return "namespaces"
    return "limits"


@pytest.fixture
def namespaces() -> Isolation:
    try:
        return check_isolation(allow_network=False)
    except SandboxError as error:
        pytest.skip(str(error))


def test_stdin_arguments_and_exit_status_come_through(isolation: Isolation) -> None:
    code = "import sys; print(sys.stdin.read(), sys.argv[1], end=''); print('no', file=sys.stderr); sys.exit(7)"
    outcome = _run(code, "word", isolation=isolation, stdin=b"given")
    assert outcome == Outcome(status="exited", code=7, stdout=b"given word", stderr="no\n")


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(1e6)",
        "import signal, time\n"
        "for s in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
        "while True: time.sleep(1)",
    ],
    ids=["loop", "sleep", "deaf"],
)
def test_a_program_that_does_not_end_is_ended(code: str, isolation: Isolation) -> None:
    token = str(uuid4())
    outcome = _run(code, token, isolation=isolation, limits=replace(_LIMITS, wall_s=1))
    assert outcome.status == "overtime"
    assert _running(token) == []


def test_processor_time_is_limited(isolation: Isolation) -> None:
    outcome = _run("while True: pass", isolation=isolation, limits=replace(_LIMITS, cpu_s=1))
    assert (outcome.status, outcome.code) == ("exited", -9)


def test_a_fork_bomb_gets_no_more_processes_than_allowed(isolation: Isolation) -> None:
    code = (
        "import os, time\n"
        "made = 0\n"
        "for _ in range(40):\n"
        "    try:\n"
        "        if os.fork() == 0: time.sleep(1e6)\n"
        "        made += 1\n"
        "    except BlockingIOError: pass\n"
        "print(made, end='')"
    )
    token = str(uuid4())
    outcome = _run(code, token, isolation=isolation)
    # Where the limit counts all of the user's processes, the neighbours' endings make room for a few more.
    assert 0 < int(outcome.stdout) <= _LIMITS.processes + (0 if isolation == "namespaces" else 4)
    assert _running(token) == []


def test_a_fork_bomb_that_goes_on_is_ended_with_all_its_processes(isolation: Isolation) -> None:
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    token = str(uuid4())
    assert _run(code, token, isolation=isolation, limits=replace(_LIMITS, wall_s=1)).status == "overtime"
    assert _running(token) == []


def test_a_daemon_ends_with_its_program(isolation: Isolation) -> None:
    code = (
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "    if os.fork() == 0:\n"
        "        os.write(1, b'alive')\n"
        "        time.sleep(1e6)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "time.sleep(0.3)"
    )
    token = str(uuid4())
    outcome = _run(code, token, isolation=isolation)
    assert (outcome.code, outcome.stdout) == (0, b"alive")
    assert _running(token) == []


def test_memory_is_limited(isolation: Isolation) -> None:
    code = (
        "blocks = []\n"
        "try:\n"
        "    while True: blocks.append(bytearray(1 << 26))\n"
        "except MemoryError: print(len(blocks), end='')"
    )
    assert int(_run(code, isolation=isolation).stdout) < 8


def test_endless_recursion_ends_the_program_only(isolation: Isolation) -> None:
    code = "import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()"
    outcome = _run(code, isolation=isolation, limits=replace(_LIMITS, memory_bytes=64 << 20))
    assert outcome.status == "exited" and outcome.code != 0


def test_a_gigabyte_of_output_is_cut_at_the_limit(isolation: Isolation) -> None:
    code = "import sys\nfor _ in range(1024): sys.stdout.write('x' * (1 << 20))"
    outcome = _run(code, isolation=isolation)
    assert outcome.code != 0
    assert len(outcome.stdout) == _LIMITS.file_bytes


def test_files_together_are_limited(namespaces: Isolation) -> None:
    code = (
        "import errno\n"
        "for n in range(64):\n"
        "    try:\n"
        "        with open(f'/tmp/{n}', 'wb') as f: f.write(bytes(1 << 19))\n"
        "    except OSError as error: print(n, errno.errorcode[error.errno], end=''); break"
    )
    made, reason = _run(code, isolation=namespaces).stdout.split()
    assert int(made) <= 8 and reason == b"ENOSPC"


def test_nothing_is_inherited_from_the_caller(isolation: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCRD_SECRET", "secret")
    code = (
        "import os\n"
        "def is_open(n):\n"
        "    try: os.fstat(n)\n"
        "    except OSError: return False\n"
        "    return True\n"
        "print(sorted(os.environ), [n for n in range(256) if is_open(n)], end='')"
    )
    with open(os.devnull) as inherited:
        os.set_inheritable(inherited.fileno(), True)
        outcome = _run(code, isolation=isolation)
    # The interpreter adds LC_CTYPE where it likes.
    assert outcome.stdout.decode().replace("'LC_CTYPE', ", "") == "['HOME', 'LANG', 'TMPDIR'] [0, 1, 2]"


@pytest.fixture
def public_dir() -> Iterator[Path]:
    """A directory where every user may do everything, so that nothing but the sandbox can hold a program back."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


def test_the_host_s_files_can_be_neither_seen_nor_changed(namespaces: Isolation, public_dir: Path) -> None:
    precious = public_dir / "precious"
    precious.write_text("kept")
    precious.chmod(0o666)
    code = (
        "import os, shutil, sys\n"
        "folder = sys.argv[1]\n"
        "print(os.path.exists(folder))\n"
        "shutil.rmtree(folder, ignore_errors=True)\n"
        "for target in (folder + '/precious', folder + '/new'):\n"
        "    try: open(target, 'w').write('gone')\n"
        "    except OSError: pass"
    )
    outcome = _run(code, str(public_dir), isolation=namespaces)
    assert (outcome.code, outcome.stdout) == (0, b"False\n")
    assert [path.name for path in public_dir.iterdir()] == ["precious"]
    assert precious.read_text() == "kept"


def test_what_can_be_seen_of_the_host_can_only_be_read(namespaces: Isolation, public_dir: Path) -> None:
    seen = public_dir / "seen"
    seen.write_text("kept")
    seen.chmod(0o666)
    code = (
        "import os, sys\n"
        "print([path for path in (sys.argv[1], '/usr', '/lib') if not os.statvfs(path).f_flag & os.ST_RDONLY])\n"
        "print(open(sys.argv[1] + '/seen').read())\n"
        "os.remove(sys.argv[1] + '/seen')"
    )
    outcome = run(
        [_interpreter(), "-I", "-S", "-c", code, str(public_dir)],
        stdin=[],
        env={},
        readable=[Path(sys.prefix), Path(sys.base_prefix), public_dir],
        limits=_LIMITS,
        isolation=namespaces,
    )
    assert outcome.stdout == b"[]\nkept\n"
    assert "Read-only file system" in outcome.stderr
    assert seen.read_text() == "kept"


def test_there_is_no_network_but_where_it_is_left_open(isolation: Isolation) -> None:
    code = (
        "import socket, sys\n"
        "try: socket.create_connection(('127.0.0.1', int(sys.argv[1])), 5)\n"
        "except OSError: print('refused', end='')\n"
        "else: print('reached', end='')"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        outcome = _run(code, str(server.getsockname()[1]), isolation=isolation)
    assert outcome.stdout == (b"refused" if isolation == "namespaces" else b"reached")


def test_other_processes_can_be_neither_seen_nor_ended(namespaces: Isolation) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        code = "import os, sys\ntry: os.kill(int(sys.argv[1]), 9)\nexcept OSError: print('none', end='')"
        assert _run(code, str(other.pid), isolation=namespaces).stdout == b"none"
        time.sleep(0.1)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_privileges_cannot_be_gained_back(namespaces: Isolation) -> None:
    code = (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None)\n"
        "print(os.geteuid() != 0, libc.mount(b'tmpfs', b'/tmp', b'tmpfs', 0, None), end=' ')\n"
        "try: os.setuid(0); print('root', end='')\n"
        "except OSError: print('no', end='')"
    )
    assert _run(code, isolation=namespaces).stdout == b"True -1 no"


def test_the_place_to_work_in_is_removed_and_nothing_else(
    isolation: Isolation, public_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    monkeypatch.setattr("tempfile.tempdir", str(public_dir))
    code = (
        "import os, sys\n"
        "os.symlink(sys.argv[1], 'link')\n"
        "os.makedirs('locked/inner')\n"
        "open('locked/inner/file', 'w').close()\n"
        "os.chmod('locked/inner', 0)\n"
        "os.chmod('locked', 0)"
    )
    assert _run(code, str(elsewhere), isolation=isolation).code == 0
    assert list(public_dir.iterdir()) == []
    assert elsewhere.stat().st_mode & 0o777 == 0o755


def test_a_program_that_is_not_there_is_named(isolation: Isolation) -> None:
    with pytest.raises(SandboxError, match="no/such/program"):
        run(["/no/such/program"], stdin=[], env={}, readable=[], limits=_LIMITS, isolation=isolation)


@pytest.mark.parametrize("allow_network", [False, True])
def test_without_namespaces_untrusted_code_is_refused_unless_allowed(allow_network: bool) -> None:
    forbidding = (
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all"
        f" {sys.executable} -c '"
        "from vcrd_ray.evaluation.code.sandbox import check_isolation as c\n"
        f"print(c(allow_network={allow_network}))'"
    )
    tried = subprocess.run(["unshare", "-Ur", "true"], capture_output=True)
    if tried.returncode != 0:
        pytest.skip("needs a user namespace in which to forbid further ones")
    path = str(Path(__file__).parents[4])
    ended = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", forbidding],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    if allow_network:
        assert ended.stdout.strip() == "limits", ended.stderr
    else:
        assert "SandboxError: no isolation by namespaces here" in ended.stderr
        assert "set allow_network" in ended.stderr
