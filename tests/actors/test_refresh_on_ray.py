"""Responses written anew by a pool of rollout actors on a real Ray: equalities, kills, and syncs that go wrong."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from actors.pools import launch as pools
from jobs import distill
from tests.actors.conftest import make_config
from tests.actors.test_distill_on_ray import assert_bitwise, kill_roles, losses
from tests.conftest import make_pairs, write_rollouts
from vcrd_ray.config import Config
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.errors import SyncError
from vcrd_ray.runs.files import read_jsonl
from vcrd_ray.training.in_process import distil

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
REFRESH = {"every": 2, "ahead": 1, "replicas": 2}
# Ranks draw dropout masks of their own: equality over ranks needs none.
LORA = {"r": 4, "alpha": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rollouts(tmp_path_factory.mktemp("data") / "rollouts", 24)


def config(
    folder: Path,
    rollouts: Path,
    *,
    refresh: dict[str, Any] | None = None,
    student: dict[str, Any] | None = None,
    **distill_changes: Any,
) -> Config:
    return make_config(
        folder,
        rollouts,
        distill={"num_updates": 8, "lora": LORA, **distill_changes},
        rollouts={"refresh": REFRESH | (refresh or {}), "sampling": {"max_new_tokens": 24}},
        student=student or {},
    )


def run(folder: Path, rollouts: Path, **changes: Any) -> Path:
    return distill.run(config(folder, rollouts, **changes))


@pytest.fixture(scope="module")
def reference(rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on one rank."""
    return run(tmp_path_factory.mktemp("reference"), rollouts)


def kept(directory: Path) -> list[dict[str, Any]]:
    rows = [row for file in directory.glob("responses/*.parquet") for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: (row["update"], row["pair"]))


def test_a_run_with_new_responses_leaves_a_record_of_versions_and_staleness(reference: Path) -> None:
    rows = read_jsonl(reference / "metrics.jsonl")
    assert [row["rollouts/staleness"] for row in rows] == [0, 1, 2, 1, 2, 1, 2, 1]
    assert all(row["rollouts/renewed"] == 1 and row["rollouts/tokens"] > 0 for row in rows[3:])
    assert all(row["rollouts/canary_difference"] < 1e-3 and row["wait/rollouts_s"] >= 0 for row in rows[3:])
    published = read_jsonl(reference / "student_versions.jsonl")
    assert [row["number"] for row in published] == [2, 4, 6]
    assert len({row["digest"] for row in published}) == 3 and all(row["canary_from_base"] > 0 for row in published)
    assert {(row["update"], row["student_version"]) for row in kept(reference)} == {
        (3, 2), (4, 2), (5, 4), (6, 4), (7, 6)
    }  # fmt: skip
    # Version 6 is what going on from the last checkpoint but one, at update 6, would need.
    assert {path.name for path in (reference / "student_versions").iterdir()} == {"000004", "000006"}


def test_one_process_without_actors_equals_it(reference: Path, tmp_path: Path) -> None:
    alone = distil(config(tmp_path, tmp_path), make_pairs(24), run_dir=tmp_path)
    assert [report.metrics["loss"] for report in alone.reports] == pytest.approx(losses(reference), rel=1e-4)
    assert [(r["pair"], r["ids"]) for r in kept(tmp_path)] == [(r["pair"], r["ids"]) for r in kept(reference)]


@pytest.mark.full
def test_two_ranks_equal_one(rollouts: Path, reference: Path, tmp_path: Path) -> None:
    two = run(tmp_path, rollouts, student={"ranks": 2})
    assert losses(two) == pytest.approx(losses(reference), rel=1e-4)
    assert [(r["pair"], r["ids"]) for r in kept(two)] == [(r["pair"], r["ids"]) for r in kept(reference)]


@pytest.mark.full
def test_stopped_and_gone_on_with_equals_never_stopped(rollouts: Path, reference: Path, tmp_path: Path) -> None:
    run(tmp_path, rollouts, stop_after=5)
    resumed = run(tmp_path, rollouts)
    assert_bitwise(resumed, reference)
    assert kept(resumed) == kept(reference)


@pytest.mark.full
def test_rollout_actors_killed_while_they_write_change_nothing(rollouts: Path, reference: Path, tmp_path: Path) -> None:
    killed: list[int] = []
    stop = threading.Event()

    def kill_now_and_then() -> None:
        kill_roles(tmp_path / "distill", ("RolloutActor",), killed)
        while not stop.wait(1.5) and len(killed) < 6:
            kill_roles(tmp_path / "distill", ("RolloutActor",), killed)

    thread = threading.Thread(target=kill_now_and_then)
    thread.start()
    try:
        disturbed = run(tmp_path, rollouts)
    finally:
        stop.set()
        thread.join()
    assert killed
    assert_bitwise(disturbed, reference)
    assert kept(disturbed) == kept(reference)


class Hangs(HFEngine):
    """A sync that never ends."""

    def load_version(self, directory: Path, kind: object) -> None:
        time.sleep(3600)


@pytest.mark.full
def test_a_sync_that_hangs_ends_the_run_in_words(
    rollouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pools.rollout_pool
    monkeypatch.setattr(pools, "rollout_pool", lambda config: made(config, load=load_hanging))
    with pytest.raises(SyncError, match=r"^version 2 of the student was not loaded .* within 2 s"):
        run(tmp_path, rollouts, refresh={"sync_timeout_s": 2}, num_updates=4)


def load_hanging(config: Config) -> HFEngine:
    return Hangs(config.student.path, dtype=config.student.dtype, device=torch.device("cpu"))


@pytest.mark.full
def test_the_student_is_watched_while_it_trains_and_the_best_version_is_kept(
    rollouts: Path, reference: Path, tmp_path: Path
) -> None:
    watch = {"every": 2, "prompts": {"type": "tiny", "seed": 5, "count": 12}, "sampling": {"max_new_tokens": 48}}
    watched = run(tmp_path, rollouts, watch=watch)
    # Nobody who trains notices.
    assert_bitwise(watched, reference)
    rows = read_jsonl(watched / "watched.jsonl")
    assert sorted(row["update"] for row in rows) == [2, 4, 6, 8] and all(row["total"] == 12 for row in rows)
    best = max(row["pass_at_1"] for row in rows)
    kept_row = json.loads((watched / "best" / "accuracy.json").read_text())
    assert kept_row["pass_at_1"] == best and kept_row in rows
    assert (watched / "best" / "adapter" / "adapter_model.safetensors").is_file()
