"""Trainings that are told to end save first and go on elsewhere: as jobs, with their run kept in an S3 bucket."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs.cli import EXIT_CAN_GO_ON
from tests.buckets import Bucket, bucket
from tests.conftest import write_rollouts
from tests.jobs.conftest import kill_job, run, start
from vcrd_ray.runs.files import read_jsonl

__all__ = ["bucket"]
pytestmark = [pytest.mark.slow, pytest.mark.full]

UPDATES = 8
SHORT = [
    *["jobs.distill", "--distill.num_updates", str(UPDATES), "--distill.batch_size", "8"],
    *["--distill.micro_batch_size", "2", "--distill.lora.r", "4", "--distill.checkpoint_every", "1000"],
    # Scores of an earlier epoch were judged in other company; judged again, on a machine without them, they differ by rounding.
    *["--judge.type=value_head", "--judge.cache=null"],
]


def updates(run_dir: Path) -> list[int]:
    try:
        return [row["update"] for row in read_jsonl(run_dir / "distill" / "metrics.jsonl")]
    except FileNotFoundError:
        return []


def stop_after(count: int, process: subprocess.Popen[str], run_dir: Path) -> str:
    """SIGTERM once so many updates are done; what the job printed."""
    until = time.monotonic() + 300
    try:
        while len(updates(run_dir)) < count:
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=300)
        return output
    finally:
        if process.poll() is None:
            kill_job(process)


def test_a_stopped_run_goes_on_on_another_machine_as_if_nothing_had_been(bucket: Bucket, tmp_path: Path) -> None:
    rollouts = write_rollouts(tmp_path / "rollouts", 24)
    bucket.store("shared").push(rollouts, "rollouts")
    given = [*SHORT, f"--distill.rollouts={bucket.uri('shared/rollouts')}"]
    kept = [*given, f"--run.storage={bucket.uri('runs/demo')}"]

    process = start(*kept, f"--run.dir={tmp_path / 'first'}")
    output = stop_after(2, process, tmp_path / "first")
    assert process.returncode == EXIT_CAN_GO_ON, output[-3000:]
    assert "stopped: the job was told to end (SIGTERM); everything is saved" in output.splitlines()[-1]
    done = len(updates(tmp_path / "first"))
    assert 2 <= done < UPDATES

    # The machine is gone, and its disk with it. The next one is given too little time.
    shutil.rmtree(tmp_path / "first")
    output = run(*kept, f"--run.dir={tmp_path / 'second'}", "--run.must_save_by=1", code=EXIT_CAN_GO_ON)
    assert "stopped: the time is up (run.must_save_by)" in output
    assert updates(tmp_path / "second") == list(range(done + 1)), "one update more, and the records of those before"

    run(*kept, f"--run.dir={tmp_path / 'third'}", "--resume=must")
    run(*given, f"--run.dir={tmp_path / 'undisturbed'}")
    assert updates(tmp_path / "third") == list(range(UPDATES))
    ours, theirs = (
        load_file(tmp_path / name / "distill" / "adapter" / "adapter_model.safetensors")
        for name in ("third", "undisturbed")
    )
    assert ours.keys() == theirs.keys() and all(ours[n].equal(theirs[n]) for n in ours)
    stored = set(bucket.store("runs/demo").files())
    assert {
        "distill/model/model.safetensors",
        "distill/training.json",
        "distill/report.html",
        "report.html",
    } & stored == {
        "distill/model/model.safetensors",
        "distill/training.json",
        "report.html",
    }
