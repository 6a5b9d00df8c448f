"""Jobs submitted to a running cluster on loopback: by `jobs.submit`, and as `ray job submit` does it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import write_rollouts
from tests.jobs.heads import Head, free_ports, namespace_refusal, running_head
from vcrd_ray.runs.files import read_jsonl

pytestmark = pytest.mark.slow
NOWHERE = "/nowhere/at/all"
REASON = f"ModelError: {NOWHERE}: no such directory"


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with running_head(tmp_path_factory.mktemp("head")) as started:
        yield started


@pytest.fixture
def cutting_proxy(head: Head) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Address of a way to the head that breaks in the middle of the first log, and the process that says so."""
    (port,) = free_ports(1)
    proxy = head.start(sys.executable, "-m", "tests.jobs.heads", str(port), str(head.dashboard), "300")
    try:
        assert proxy.stdout is not None and proxy.stdout.readline() == "listening\n"
        yield f"http://127.0.0.1:{port}", proxy
    finally:
        proxy.kill()
        proxy.communicate()


def distillation(folder: Path, **changes: object) -> dict[str, dict[str, object]]:
    return {
        "run": {"dir": str(folder / "run")},
        "distill": {
            "num_updates": 2,
            "batch_size": 4,
            "micro_batch_size": 2,
            "rollouts": str(write_rollouts(folder / "rollouts", 16)),
            **changes,
        },
    }


def test_nothing_of_the_head_listens_outside_loopback(head: Head) -> None:
    if namespace_refusal():
        pytest.skip(f"no network namespace can be made here: {namespace_refusal()}")
    code = "import psutil; print(*{a.address for n in psutil.net_if_addrs().values() for a in n if a.family == 2})"
    assert head.run(sys.executable, "-c", code).stdout.split() == ["127.0.0.1"]


def test_a_distillation_is_followed_over_a_broken_connection_to_its_end(
    head: Head, cutting_proxy: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    address, proxy = cutting_proxy
    config = tmp_path / "elsewhere.yaml"
    config.write_text(yaml.safe_dump(distillation(tmp_path)))
    done = head.submit(
        *["--address", address, "--env", "SOME_SETTING", "--submission-id", "the-distillation"],
        *["--", "jobs.distill", "--config", str(config)],
        SOME_SETTING="a-value-that-is-sent",
        HF_TOKEN="a-secret-that-is-not",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert proxy.stdout is not None and proxy.stdout.readline() == "cut\n"
    assert "connection lost" in done.stderr
    for once in ("Running entrypoint for job the-distillation", "distill: starting", "distill: 2/2 updates"):
        assert done.stdout.count(once) == 1, done.stdout
    assert done.stdout.rstrip().endswith("report.html")
    assert done.stderr.rstrip().endswith("the-distillation: succeeded")
    assert len(read_jsonl(tmp_path / "run" / "distill" / "metrics.jsonl")) == 2
    assert (tmp_path / "run" / "distill" / "model" / "model.safetensors").is_file()

    assert '"SOME_SETTING": "***"' in done.stderr
    listed = head.cli("list")
    assert "a-value-that-is-sent" in listed.stdout + listed.stderr
    for text in (done.stdout, done.stderr, listed.stdout, listed.stderr):
        assert "a-secret-that-is-not" not in text
    assert "a-value-that-is-sent" not in done.stdout + done.stderr + head.submit("--list").stdout

    # Ray's own command with the whole project finds the run finished.
    excludes = json.dumps({"excludes": ["/.venv", "/runs", "/.git", "/tests", "/docs"]})
    entrypoint = ["python", "-m", "jobs.distill", "--config", str(config)]
    by_ray = head.cli("submit", "--working-dir=.", f"--runtime-env-json={excludes}", "--", *entrypoint)
    assert by_ray.returncode == 0, by_ray.stdout[-3000:] + by_ray.stderr[-3000:]
    assert "report.html" in by_ray.stdout


@pytest.mark.full
def test_a_job_that_fails_ends_with_its_reason_and_exit_code(head: Head, tmp_path: Path) -> None:
    left = head.submit("--detach", "--", "distill", "--teacher.path", NOWHERE, "--run.dir", str(tmp_path / "run"))
    assert left.returncode == 0, left.stderr
    assert f"the cluster must have what is not here: {REASON}" in left.stderr
    job = left.stdout.strip()
    followed = head.submit("--follow", job)
    assert followed.returncode == 1
    assert followed.stderr.splitlines()[-1].startswith(f"{job}: failed, exit code 1: {REASON}")
    assert REASON in head.submit("--status", job).stdout

    (plain,) = [line.strip() for line in left.stderr.splitlines() if line.strip().startswith("ray job submit ")]
    by_ray = head.run("sh", "-c", plain.replace(job, "by-rays-own-command"))
    assert by_ray.returncode == 1
    assert REASON in by_ray.stdout + by_ray.stderr


@pytest.mark.full
def test_a_follower_may_leave_and_the_job_be_stopped(head: Head, tmp_path: Path) -> None:
    config = tmp_path / "long.yaml"
    config.write_text(yaml.safe_dump(distillation(tmp_path, num_updates=10_000)))
    sent = ["--address", head.address, "--no-check", "--submission-id", "the-long-one", "--", "distill"]
    follower = head.start(sys.executable, "-m", "jobs.submit", *sent, "--config", str(config))
    assert follower.stdout is not None
    assert any("Running entrypoint for job the-long-one" in line for line in follower.stdout)
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert "the-long-one goes on" in said and "--stop the-long-one" in said
    assert head.submit("--status", "the-long-one").stdout == "the-long-one: running\n"
    stopped = head.submit("--stop", "the-long-one")
    assert (stopped.returncode, stopped.stdout) == (0, "the-long-one: stopped\n")
    assert head.submit("--follow", "the-long-one").returncode == 143
    assert re.search(r"^the-long-one +STOPPED .*jobs\.distill", head.submit("--list").stdout, re.MULTILINE)
    assert "had ended before" in head.submit("--stop", "the-long-one").stdout


def test_a_cluster_that_cannot_be_reached_is_named_with_the_cure(head: Head, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.touch(mode=0o600)
    wrong.write_text("b" * 64)
    refused = head.submit("--list", RAY_AUTH_TOKEN_PATH=str(wrong))
    assert refused.returncode == 1 and "RAY_AUTH_TOKEN_PATH" in refused.stderr
    (closed,) = free_ports(1)
    absent = head.submit("--address", f"http://127.0.0.1:{closed}", "--list")
    assert absent.returncode == 1 and "ray dashboard cluster.yaml" in absent.stderr
    unknown = head.submit("--follow", "no-such-job")
    assert unknown.returncode == 1 and "no-such-job" in unknown.stderr
    for failed in (refused, absent, unknown):
        assert "Traceback" not in failed.stderr
