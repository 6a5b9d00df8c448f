"""Methods that need no teacher, or have a state of their own, on a real Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from actors.pools.pool import Pool
from jobs import distill
from tests.actors.conftest import make_config
from tests.conftest import write_rollouts
from vcrd_ray.config.methods import with_method
from vcrd_ray.runs.files import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.usefixtures("local_ray")]
SHORT = {"num_updates": 3, "checkpoint_every": 1}
TRUNCATED = {"transport": "top_k", "top_k": 4}


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rollouts(tmp_path_factory.mktemp("data") / "rollouts", 24)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(run / "metrics.jsonl")]


def test_seqkd_starts_no_teacher_and_no_judge(rollouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pool, "__init__", lambda *_: pytest.fail("a pool was made"))
    run = distill.run(with_method(make_config(tmp_path, rollouts, distill=SHORT), "seqkd"))
    # Cross-entropy of solutions under a student that has read such text, in nats a token.
    assert all(0 < loss < 3 for loss in losses(run)) and (run / "model" / "model.safetensors").is_file()


def test_what_taid_has_learnt_from_a_truncated_teacher_survives_a_stop(rollouts: Path, tmp_path: Path) -> None:
    def run(**changes: object) -> Path:
        return distill.run(
            with_method(make_config(tmp_path, rollouts, distill=SHORT | changes, teacher=TRUNCATED), "taid")
        )

    stopped = run(stop_after=2)
    state = json.loads((stopped / "checkpoints" / "update-000002" / "record.json").read_text())["state"]["taid"]
    assert state["t"] > 0.4 and state["previous_loss"] == pytest.approx(losses(stopped)[-1])
    assert read_jsonl(run() / "metrics.jsonl")[-1]["objective/taid_t"] == state["t"]
