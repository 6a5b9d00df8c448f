"""A job submitted to a running cluster on loopback, as `ray job submit` does it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import write_rollouts
from tests.jobs.conftest import ROOT
from vcrd_ray.runs import read_jsonl

pytestmark = pytest.mark.slow
RAY = Path(sys.executable).with_name("ray")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Head:
    """A Ray head of this test's own; nobody else's Ray is touched."""

    def __init__(self, token: Path) -> None:
        self.dashboard, self.gcs, self.metrics, self.client, self.agent = free_ports(5)
        self.temp = tempfile.mkdtemp(prefix="vr-", dir="/tmp")  # socket paths must stay short
        self.env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "TOKENIZERS_PARALLELISM": "false",
        }
        self.env.pop("RAY_ADDRESS", None)
        ports = {
            "--port": self.gcs,
            "--dashboard-port": self.dashboard,
            "--metrics-export-port": self.metrics,
            "--ray-client-server-port": self.client,
            # Its default is fixed, and a node whose agent finds the port taken accepts no job.
            "--dashboard-agent-listen-port": self.agent,
        }
        self.process = subprocess.Popen(
            [str(RAY), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"]
            + ["--include-dashboard=true", "--num-cpus=8", f"--temp-dir={self.temp}", "--object-store-memory=200000000"]
            + [f"{name}={port}" for name, port in ports.items()],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def cli(self, *argv: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(RAY), "job", *argv], env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout
        )

    def stop(self) -> None:
        members = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        for member in members:
            if member.is_running():
                member.kill()


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("a" * 64)
    token.chmod(0o600)
    started = Head(token)
    try:
        # The dashboard answers before the node's agent can take jobs, so the first job is one that does nothing.
        until = time.monotonic() + 120
        while started.cli("submit", f"--address={started.address}", "--", sys.executable, "-c", "pass").returncode:
            assert started.process.poll() is None and time.monotonic() < until, "the head accepts no job"
            time.sleep(1)
        yield started
    finally:
        started.stop()


def test_a_submitted_distillation_succeeds_and_leaves_its_artefacts(head: Head, tmp_path: Path) -> None:
    rollouts = write_rollouts(tmp_path / "rollouts", 16)
    # A working directory like the project's: only what is tracked is uploaded.
    done = head.cli(
        "submit",
        f"--address={head.address}",
        "--working-dir=.",
        '--runtime-env-json={"excludes": [".venv", "runs", ".git", "tests", "docs"]}',
        "--",
        sys.executable,
        *[
            "-m",
            "jobs.distill",
            "--distill.num_updates",
            "2",
            "--distill.batch_size",
            "4",
            "--distill.micro_batch_size",
            "2",
        ],
        f"--run.dir={tmp_path / 'run'}",
        f"--distill.rollouts={rollouts}",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "distill: 2/2 updates" in done.stdout and "report.html" in done.stdout
    (job,) = re.findall(r"Job '(raysubmit_\w+)' submitted", done.stdout)
    status = head.cli("status", f"--address={head.address}", job)
    assert "succeeded" in status.stdout + status.stderr
    assert len(read_jsonl(tmp_path / "run" / "distill" / "metrics.jsonl")) == 2
    assert (tmp_path / "run" / "distill" / "model" / "model.safetensors").is_file()


def test_a_submitted_job_that_is_wrong_fails_with_its_reason(head: Head, tmp_path: Path) -> None:
    done = head.cli(
        "submit",
        f"--address={head.address}",
        "--working-dir=.",
        '--runtime-env-json={"excludes": [".venv", "runs", ".git", "tests", "docs"]}',
        "--",
        sys.executable,
        *["-m", "jobs.distill", "--teacher.path", "/nowhere/at/all"],
        f"--run.dir={tmp_path / 'run'}",
    )
    assert done.returncode != 0
    assert "ModelError: /nowhere/at/all: no such directory" in done.stdout + done.stderr
