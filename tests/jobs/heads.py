"""A Ray head of a test's own. Nobody else's Ray is touched, and where namespaces are allowed nothing listens outside it.

A head binds some of its ports on all interfaces, whatever address it is given. So it runs in a network namespace that has
nothing but loopback, and what talks to it is started inside: `Head.run`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
_ENTER_NEW = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@cache
def namespace_refusal() -> str | None:
    """Why no network namespace can be made here; none: it can."""
    try:
        tried = subprocess.run([*_ENTER_NEW, "true"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return tried.stderr.strip() or "unshare failed" if tried.returncode else None


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Head:
    """A head with dashboard and token authentication."""

    def __init__(self, token: Path) -> None:
        self.dashboard, self.gcs, self.metrics, self.client, self.agent = free_ports(5)
        self.temp = tempfile.mkdtemp(prefix="h-")  # socket paths must stay short
        self.env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TOKENIZERS_PARALLELISM": "false",
            # As on a node: `python` is the one of the environment.
            "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),
        }
        # A node finds the project in what was sent, or not at all.
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "PYTHONPATH"):
            self.env.pop(name, None)
        ports = {
            "--port": self.gcs,
            "--dashboard-port": self.dashboard,
            "--metrics-export-port": self.metrics,
            "--ray-client-server-port": self.client,
            # Its default is fixed, and a node whose agent finds the port taken accepts no job.
            "--dashboard-agent-listen-port": self.agent,
        }
        refusal = namespace_refusal()
        if refusal:
            warnings.warn(f"the Ray head also listens outside loopback: no network namespace ({refusal})", stacklevel=2)
        self.process = subprocess.Popen(
            [*([] if refusal else _ENTER_NEW), str(RAY), "start", "--head", "--block"]
            + ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--include-dashboard=true"]
            + ["--num-cpus=8", f"--temp-dir={self.temp}", "--object-store-memory=200000000"]
            + [f"{name}={port}" for name, port in ports.items()],
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        inside = ["nsenter", "--target", str(self.process.pid), "--user", "--net", "--preserve-credentials"]
        self._inside = [] if refusal else inside

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, *argv: str, **env: str) -> subprocess.Popen[str]:
        """A command where the head is, in the project's root."""
        return subprocess.Popen(
            [*self._inside, *argv],
            env={**self.env, **env},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *argv: str, timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*argv, **env)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def cli(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """`ray job ...`."""
        return self.run(str(RAY), "job", argv[0], f"--address={self.address}", *argv[1:])

    def submit(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`python -m jobs.submit ...`."""
        return self.run(sys.executable, "-m", "jobs.submit", "--address", self.address, *argv, **env)

    def wait_ready(self) -> None:
        """Until a job that does nothing succeeds: the dashboard answers before the node's agent can take jobs."""
        until = time.monotonic() + 120
        while self.cli("submit", "--", "true").returncode:
            assert self.process.poll() is None and time.monotonic() < until, "the head accepts no job"
            time.sleep(1)

    def stop(self) -> None:
        """End all that this head started; asked politely, `ray start --block` takes half a minute."""
        members = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self.process.wait(30)
        psutil.wait_procs(members, timeout=30)
        shutil.rmtree(self.temp, ignore_errors=True)


@contextmanager
def running_head(folder: Path) -> Iterator[Head]:
    """A head that takes jobs, with a token of its own in `folder`."""
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text("a" * 64)
    head = Head(token)
    try:
        head.wait_ready()
        yield head
    finally:
        head.stop()


class _CuttingProxy:
    """Passes everything on, but ends the first connection that follows a log after some bytes of it."""

    def __init__(self, target: int, after_bytes: int) -> None:
        self._target, self._after_bytes = target, after_bytes
        self._cut = False

    async def serve(self, port: int) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", port)
        print("listening", flush=True)
        await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target)
        first = await reader.read(1 << 16)
        there_writer.write(first)
        limit = self._after_bytes if b"/logs/tail" in first and not self._cut else None
        up = asyncio.create_task(self._pass(reader, there_writer, None))
        await self._pass(there_reader, writer, limit)
        up.cancel()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, limit: int | None) -> None:
        passed = 0
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
            passed += len(data)
            if limit is not None and passed > limit:
                self._cut = True
                print("cut", flush=True)
                break
        sink.close()


if __name__ == "__main__":
    _port, _target, _after_bytes = map(int, sys.argv[1:])
    asyncio.run(_CuttingProxy(_target, _after_bytes).serve(_port))
