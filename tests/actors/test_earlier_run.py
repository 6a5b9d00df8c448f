"""A run directory that an earlier version left goes on, and is reported, under this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jobs import distill
from tests.actors.conftest import make_config
from tests.conftest import write_rollouts
from vcrd_ray.report.page import write_report
from vcrd_ray.runs.files import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
EARLIER = Path(__file__).parents[1] / "data" / "earlier_run"
CHANGES = {
    "num_updates": 4,
    "decisions_per_update": 4,
    "keep_checkpoints": 1,
    "lora": {"r": 1, "alpha": 4, "dropout": 0.0},
}


def test_a_run_that_an_earlier_version_left_goes_on_and_is_reported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    rollouts = write_rollouts(run / "rollouts", 24)
    shutil.copytree(EARLIER / "distill", run / "distill")
    config = run / "distill" / "config.yaml"
    config.write_text(config.read_text().replace("ROLLOUTS", str(rollouts)).replace("RUN", str(run)))
    before = (run / "distill" / "metrics.jsonl").read_text()
    finished = distill.run(make_config(run, rollouts, distill=CHANGES))
    after = (finished / "metrics.jsonl").read_text()
    assert after.startswith(before), "what was done is not done again"
    # Made on another machine: equal to rounding.
    wanted = json.loads((EARLIER / "whole_run.json").read_text())["losses"]
    assert [row["loss"] for row in read_jsonl(finished / "metrics.jsonl")] == pytest.approx(wanted, rel=1e-5)
    assert "Most amplified" in write_report(run).read_text()
