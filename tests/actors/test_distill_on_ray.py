"""The student group with teacher and judge pools on a real Ray: equalities, kills, resumes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from jobs import distill
from tests.actors.conftest import SMALL, make_config
from tests.conftest import make_pairs, write_rollouts
from vcrd_ray.config import Config
from vcrd_ray.config.stages import DistillSection
from vcrd_ray.errors import VcrdError
from vcrd_ray.runs.files import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
NUM_PAIRS = 24


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rollouts(tmp_path_factory.mktemp("data") / "rollouts", NUM_PAIRS)


@pytest.fixture(scope="module")
def reference(rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed overlapped run on one rank."""
    return distill.run(make_config(tmp_path_factory.mktemp("reference"), rollouts))


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]


def assert_bitwise(run: Path, reference: Path) -> None:
    assert losses(run) == losses(reference)
    ours, theirs = adapter(run), adapter(reference)
    assert ours.keys() == theirs.keys() and all(ours[n].equal(theirs[n]) for n in ours)


def assert_close(run: Path, reference: Path) -> None:
    assert losses(run) == pytest.approx(losses(reference), rel=1e-5)
    norms = [[row["grad_norm"] for row in read_jsonl(r / "metrics.jsonl")] for r in (run, reference)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    ours, theirs = adapter(run), adapter(reference)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=3e-5)


def test_training_changes_the_student_and_leaves_a_complete_run_directory(reference: Path) -> None:
    assert len(losses(reference)) == SMALL["num_updates"]
    assert all(bool(tensor.any()) for name, tensor in adapter(reference).items() if "lora_B" in name), "B begins as 0"
    names = {p.name for p in reference.iterdir()}
    assert {"config.yaml", "versions.json", "metrics.jsonl", "tensorboard", "checkpoints", "log.txt", "model"} <= names
    rows = read_jsonl(reference / "metrics.jsonl")
    row = rows[0]
    prefetch = DistillSection.model_validate(SMALL).prefetch
    # Two open micro-batches of two sides, what is asked ahead, and the self-check.
    assert all(2 <= row["judge/max_in_flight"] <= prefetch + 5 for row in rows)
    assert row["wait/judge_s"] >= 0 and row["time/judge_s"] > 0 and row["judge/judged_rows"] > 0
    # Three updates are an epoch: in the second nothing is judged but what the student proposes on teacher prefixes.
    first, second = (sum(row["judge/tokens"] for row in rows[start : start + 3]) for start in (0, 3))
    assert 0.3 * first < second < 0.7 * first


def test_plain_torch_in_one_process_equals_deepspeed_on_ray(rollouts: Path, reference: Path) -> None:
    from vcrd_ray.training.in_process import distil

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = distil(Config.model_validate({"distill": SMALL}), make_pairs(NUM_PAIRS))
    finally:
        torch.set_num_threads(threads)
    found = [report.metrics["loss"] for report in trained.reports]
    assert found == pytest.approx(losses(reference), rel=1e-5)


@pytest.fixture(scope="module")
def without_dropout(rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ranks draw dropout masks of their own: equality over ranks needs none."""
    lora = {"r": 4, "alpha": 16, "dropout": 0.0}
    return distill.run(
        make_config(tmp_path_factory.mktemp("plain"), rollouts, distill={"lora": lora, "num_updates": 3})
    )


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.full) for stage in (2, 3))])
def test_two_ranks_equal_one_at_every_zero_stage(
    rollouts: Path, without_dropout: Path, tmp_path: Path, stage: int
) -> None:
    lora = {"r": 4, "alpha": 16, "dropout": 0.0}
    config = make_config(
        tmp_path,
        rollouts,
        # Stage 3 on several ranks runs one micro-batch after another (see Config).
        distill={"lora": lora, "num_updates": 3, "overlap": stage < 3},
        student={"ranks": 2, "zero_stage": stage},
    )
    assert_close(distill.run(config), without_dropout)


def kill_roles(run: Path, names: tuple[str, ...], killed: list[int], *, updates: int = 2) -> None:
    """SIGKILL this process's own actors of the given classes once so many updates are done."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if (run / "metrics.jsonl").exists() and len(read_jsonl(run / "metrics.jsonl")) >= updates:
            break
        time.sleep(0.02)
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if any(f"ray::{name}" in title for name in names):
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)


def test_one_after_the_other_with_a_teacher_judges_and_a_rank_killed_equals_overlapped_and_undisturbed(
    rollouts: Path, reference: Path, tmp_path: Path
) -> None:
    """Three claims in one run, which costs as much as one: no overlap, pools that die, and a rank that dies and goes on."""
    pools: list[int] = []
    ranks: list[int] = []

    def kill() -> None:
        kill_roles(tmp_path / "distill", ("EngineActor", "JudgeActor"), pools)
        kill_roles(tmp_path / "distill", ("RayTrainWorker",), ranks, updates=4)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        two = {"type": "value_head", "replicas": 2}
        run = distill.run(make_config(tmp_path, rollouts, judge=two, distill={"overlap": False}))
    finally:
        thread.join()
    assert len(pools) >= 3 and ranks
    assert_bitwise(run, reference)
    rows = read_jsonl(run / "metrics.jsonl")
    # Deaths before the last checkpoint but one of the rank are in rows that were overwritten.
    assert sum(row["judge/set_aside_rows"] for row in rows) == 0


def test_stopped_early_and_gone_on_with_one_after_the_other_equals_an_uninterrupted_overlapped_run(
    rollouts: Path, reference: Path, tmp_path: Path
) -> None:
    stopped = distill.run(make_config(tmp_path, rollouts, distill={"stop_after": 3}))
    assert len(losses(stopped)) == 3 and not (stopped / "model").exists()
    assert_bitwise(distill.run(make_config(tmp_path, rollouts, distill={"overlap": False})), reference)


def test_a_teacher_on_vllm_gives_the_same_losses(rollouts: Path, reference: Path, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    run = distill.run(make_config(tmp_path, rollouts, teacher={"engine": "vllm"}, distill={"stop_after": 2}))
    assert losses(run) == pytest.approx(losses(reference)[:2], rel=1e-4)


@pytest.mark.full
def test_a_run_goes_on_with_more_ranks_than_it_began_with(
    rollouts: Path, without_dropout: Path, tmp_path: Path
) -> None:
    def config(**student: int) -> Config:
        lora = {"r": 4, "alpha": 16, "dropout": 0.0}
        return make_config(tmp_path, rollouts, distill={"lora": lora, "num_updates": 3}, student=student)

    stopped = config(ranks=1)
    early = stopped.distill.model_copy(update={"stop_after": 2})
    distill.run(stopped.model_copy(update={"distill": early}))
    assert_close(distill.run(config(ranks=2)), without_dropout)


@pytest.mark.full
def test_a_group_trains_with_the_ranks_that_there_is_room_for(rollouts: Path, tmp_path: Path) -> None:
    config = make_config(
        tmp_path,
        rollouts,
        distill={"batch_size": 12, "num_updates": 2},
        student={"ranks": 3, "min_ranks": 1},
        sft={"batch_size": 12, "micro_batch_size": 2},
        cluster={"pools": "separate"},  # two units of the resource `student` are there
    )
    run = distill.run(config)
    (record,) = run.glob("checkpoints/*/record.json")
    assert json.loads(record.read_text())["world_size"] == 2 and len(losses(run)) == 2


@pytest.mark.full
def test_an_error_on_a_rank_arrives_as_it_was_raised_and_is_not_tried_again(rollouts: Path, tmp_path: Path) -> None:
    with pytest.raises(VcrdError, match="no usable pair"):
        distill.run(make_config(tmp_path, rollouts, distill={"max_length": 3}))
    assert len(list((tmp_path / "distill" / "ray_train").iterdir())) == 1
