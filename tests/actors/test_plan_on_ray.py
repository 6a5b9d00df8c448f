"""The simulated schedule against a real run: what a serial run measures foretells the waits of an overlapped one."""

from __future__ import annotations

import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest

from actors.pools.launch import judge_pool, teacher_pool
from actors.pools.startup import pools_beside
from actors.ranks.group import train
from actors.ranks.notes import ControlNotes
from actors.ranks.run_state import RankJob
from tests.actors.conftest import make_config
from tests.conftest import write_rollouts
from vcrd_ray.config import Config
from vcrd_ray.judges import JudgeProfile
from vcrd_ray.planning.estimate import read_shapes
from vcrd_ray.planning.rates import measured_times
from vcrd_ray.planning.simulate import Sizes, simulate
from vcrd_ray.runs.files import read_jsonl
from vcrd_ray.types import JudgeRequest, JudgeScores

pytestmark = [
    pytest.mark.full,
    pytest.mark.usefixtures("no_ray"),
    pytest.mark.slow,
    pytest.mark.usefixtures("local_ray"),
    # It compares seconds, which a machine that is busy with other work has its own idea of.
    pytest.mark.skipif(os.environ.get("VCRD_FULL") != "1", reason="wants an idle machine: set VCRD_FULL=1"),
]
_UPDATES, _WARM_UP = 6, 3


class SlowJudge:
    """Takes its time, and no processor, over every request: so what is waited for does not depend on the machine."""

    profile = JudgeProfile(fingerprint="slow", family="test", scores="token", reads="", trained_on="")

    def score(self, request: JudgeRequest) -> JudgeScores:
        seconds = 0.4
        time.sleep(seconds)
        logit = np.zeros(sum(map(len, request.responses)), dtype=np.float32)
        return JudgeScores(trunk_logit=logit, branch_logit=logit, num_tokens=len(logit), seconds=seconds)

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        return 0.0


def measure(config: Config, rollouts: Path) -> list[dict[str, float]]:
    """Metrics of a distillation judged by `SlowJudge`."""
    run_dir = config.run.dir / "distill"
    run_dir.mkdir(parents=True)
    teacher, judge = teacher_pool(config), judge_pool(config, load=SlowJudge)  # type: ignore[arg-type]
    assert teacher is not None and judge is not None
    notes = ControlNotes()
    with pools_beside([teacher, judge], judge, notes, timeout_s=120):
        train(
            RankJob(
                config=config,
                run_dir=run_dir,
                rollouts=str(rollouts),
                teacher=teacher,
                judge=judge,
                rollout=None,
                notes=notes,
                must_save_by=None,
            )
        )
    return read_jsonl(run_dir / "metrics.jsonl")


def test_a_serial_run_foretells_how_long_an_overlapped_one_takes_and_waits(tmp_path: Path) -> None:
    rollouts = write_rollouts(tmp_path / "rollouts", 24)
    # Without a cache every request is judged.
    judge = {"type": "value_head", "cache": None}
    serial, overlapped = (
        make_config(tmp_path / name, rollouts, distill={"overlap": overlap, "num_updates": _UPDATES}, judge=judge)
        for name, overlap in (("serial", False), ("overlapped", True))
    )
    times = measured_times(
        measure(serial, rollouts), measured=serial, config=overlapped, shapes=read_shapes(overlapped)
    )
    assert times.judge_teacher_s == times.judge_student_s == pytest.approx(0.4)
    run = overlapped.distill
    sizes = Sizes(
        ranks=1,
        num_micro=run.batch_size // run.micro_batch_size,
        teachers=1,
        judges=1,
        overlap=True,
        prefetch=run.prefetch,
    )
    foretold = simulate(times, sizes, num_updates=_UPDATES, warm_up=_WARM_UP)
    rows = measure(overlapped, rollouts)[_WARM_UP:]
    took = statistics.median(row["time/update_s"] for row in rows)
    waited = statistics.median(row["wait/teacher_s"] + row["wait/judge_s"] for row in rows)
    assert foretold.update_s == pytest.approx(took, rel=0.3)
    assert foretold.wait_teacher_s + foretold.wait_judge_s == pytest.approx(waited, rel=0.4)
