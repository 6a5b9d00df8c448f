"""The whole main job as a user starts it, small; killed in the middle and started again."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.jobs.conftest import kill_job, run, start
from vcrd_ray.runs.files import read_jsonl

pytestmark = pytest.mark.slow

CONFIG = """
run: {dir: %s}
cluster: {object_store_gib: 0.1}
sft: {num_updates: 6, batch_size: 16, micro_batch_size: 16, optim: {lr: 2.0e-3}, prompts: {type: tiny, seed: 1, count: 100}}
rollouts:
  prompts: {type: tiny, seed: 2, count: 48}
  block_size: 16
  sampling: {max_new_tokens: 64}
distill: {num_updates: 12, batch_size: 8, micro_batch_size: 4, checkpoint_every: 3, optim: {lr: 1.0e-3}}
evaluate: {prompts: {type: tiny, seed: 7, count: 40}, batch_size: 20, sampling: {temperature: 0, top_p: 1, max_new_tokens: 64}}
"""


def config(tmp_path: Path, name: str) -> tuple[Path, str]:
    file = tmp_path / f"{name}.yaml"
    file.write_text(CONFIG % (tmp_path / name))
    return tmp_path / name, str(file)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run_dir, file = config(tmp_path_factory.mktemp("demo"), "run")
    return run_dir, run("jobs.demo", "--config", file, "--methods", "vcrd")


def test_the_demo_ends_with_table_summary_and_report(undisturbed: tuple[Path, str]) -> None:
    run_dir, output = undisturbed
    for shown in (
        "teacher",
        "student after SFT",
        "student after VCRD",
        "exposed wait",
        "report:",
    ):
        assert shown in output
    summary = json.loads((run_dir / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"teacher", "sft", "vcrd"}
    for figures in summary["accuracy"].values():
        assert figures["low"] <= figures["pass_at_1"] <= figures["high"] and figures["total"] == 40
    assert summary["accuracy"]["teacher"]["pass_at_1"] > 0.8
    assert {"sft", "rollouts", "distill_vcrd", "evaluate_teacher", "total"} <= set(summary["wall_s"])
    assert summary["wall_s"]["cluster_start"] > 0
    assert 0 <= summary["exposed_wait_share"]["vcrd"] < 1
    page = Path(summary["report"]).read_text()
    assert "Most amplified" in page and "Before and after" in page


@pytest.mark.full
def test_methods_differ_and_each_leaves_a_run_directory(undisturbed: tuple[Path, str]) -> None:
    run_dir, _ = undisturbed
    assert "student after KD" in run("jobs.demo", "--config", str(run_dir) + ".yaml", "--methods", "vcrd", "kd")
    adapters = []
    for method in ("vcrd", "kd"):
        folder = run_dir / f"distill-{method}"
        assert len(read_jsonl(folder / "metrics.jsonl")) == 12
        adapters.append((folder / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] != adapters[1]


def test_a_finished_demo_is_not_done_again(undisturbed: tuple[Path, str]) -> None:
    run_dir, _ = undisturbed
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")}
    run("jobs.demo", "--config", str(run_dir) + ".yaml", "--methods", "vcrd")
    assert {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")} == before
    assert json.loads((run_dir / "summary.json").read_text())["wall_s"]["cluster_start"] == 0, (
        "nothing to do needs no Ray"
    )


@pytest.mark.full
def test_killed_twice_and_started_again_it_ends_bitwise_the_same(undisturbed: tuple[Path, str], tmp_path: Path) -> None:
    reference, _ = undisturbed
    run_dir, file = config(tmp_path, "killed")
    # During the rollouts with a block on disk, and twice in the middle of the distillation, at last by Ctrl-C.
    for path, lines, interrupted in (
        (run_dir / "rollouts" / "parts" / "block-00000.parquet", 0, False),
        (run_dir / "distill-vcrd" / "metrics.jsonl", 4, False),
        (run_dir / "distill-vcrd" / "metrics.jsonl", 7, True),
    ):
        process = start("jobs.demo", "--config", file)
        until = time.monotonic() + 240
        while not (path.exists() and (not lines or len(read_jsonl(path)) >= lines)):
            assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
            time.sleep(0.02)
        if interrupted:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 130 and "interrupted; run the same command again" in output
        else:
            kill_job(process)
        assert not (run_dir / "summary.json").exists()
    run("jobs.demo", "--config", file)
    ours = read_jsonl(run_dir / "distill-vcrd" / "metrics.jsonl")
    theirs = read_jsonl(reference / "distill-vcrd" / "metrics.jsonl")
    assert [(r["update"], r["loss"]) for r in ours] == [(r["update"], r["loss"]) for r in theirs]
    left, right = (
        load_file(r / "distill-vcrd" / "adapter" / "adapter_model.safetensors") for r in (run_dir, reference)
    )
    assert all(left[name].equal(right[name]) for name in right)
    for label in ("sft", "vcrd"):
        results = [json.loads((r / f"evaluate-{label}" / "result.json").read_text()) for r in (run_dir, reference)]
        assert results[0]["correct"] == results[1]["correct"]
