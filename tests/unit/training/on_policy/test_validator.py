"""The live view: figures from metrics, alerts that name what is wrong, wherever the run is."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest

from jobs.ops import watch
from vcrd_ray.errors import RunDirectoryError
from vcrd_ray.report.live import snapshot


def row(update: int, **changes: float) -> dict[str, float]:
    return {
        "update": update,
        "time": 1000.0 + 2 * update,
        "loss": 0.5,
        "grad_norm": 1.0,
        "tokens": 400.0,
        "time/update_s": 2.0,
        "wait/teacher_s": 0.1,
        "wait/judge_s": 0.1,
        "time/judge_s": 1.0,
        "judge/tokens": 3000.0,
        "judge/judged_rows": 100.0,
        "weights/p05": 0.5,
        "weights/p50": 1.0,
        "weights/p95": 3.0,
        **changes,
    }


ROWS = [row(i) for i in range(5)]


def test_rates_and_the_rest_of_the_time_come_from_the_last_updates() -> None:
    now = snapshot(ROWS, 20, now=1009.0)
    assert now is not None and now.alerts == ()
    assert (now.update, now.eta_s, now.tokens_per_s, now.judge_tokens_per_s) == (5, 30.0, 200.0, 3000.0)
    assert now.wait_share == pytest.approx(0.1) and now.weights == (0.5, 1.0, 3.0) and math.isnan(now.staleness)
    assert snapshot([], 20, now=0.0) is None


@pytest.mark.parametrize(
    ("changes", "now", "alert"),
    [
        ({}, 1100.0, "no update for 92 s (usually 2.0 s)"),
        ({"loss": math.nan}, 1009.0, "loss is nan"),
        ({"grad_norm": math.inf}, 1009.0, "grad_norm is inf"),
        ({"judge/invalid_rows": 3.0}, 1009.0, "3 judged rows had no usable score"),
        ({"judge/set_aside_rows": 2.0}, 1009.0, "2 rows were not judged"),
        ({"judge/replica_deaths": 1.0}, 1009.0, "1 deaths of judge replicas"),
        ({"wait/judge_s": 9.0}, 1009.0, "most of it for the judge"),
        ({"weights/clip_rate": 0.5}, 1009.0, "50% of the weights are clipped"),
        ({"judge/saturation": 0.95}, 1009.0, "nearly certain of everything"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, float], now: float, alert: str) -> None:
    seen = snapshot([*ROWS[:-1], row(4, **changes)], 20, now=now)
    assert seen is not None and len(seen.alerts) == 1 and alert in seen.alerts[0]


def test_a_run_that_is_over_is_not_stalled() -> None:
    seen = snapshot(ROWS, 5, now=9999.0)
    assert seen is not None and seen.alerts == ()


def training(folder: Path, *, ended: bool) -> Path:
    folder.mkdir(parents=True)
    rows = [{**r, "time": time.time()} for r in ROWS]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"update": 5, "lo')
    (folder / "progress.json").write_text('{"num_updates": 20}')
    if ended:
        (folder / "training.json").write_text("{}")
    return folder


@pytest.mark.parametrize("how", ["run", "training", "storage"])
def test_the_newest_training_of_a_run_is_shown(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(training(tmp_path / "sft", ended=True) / "metrics.jsonl", (1, 1))
    newest = training(tmp_path / "distill-vcrd", ended=True)
    given = {"run": str(tmp_path), "training": str(newest), "storage": tmp_path.as_uri()}[how]
    assert watch.main([given, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    seen = json.loads(line)
    assert (seen["update"], seen["num_updates"], seen["staleness"]) == (5, 20, None)
    assert watch.main([given]) == 0
    shown = capsys.readouterr().out.replace("\n", "")
    assert "distill-vcrd" in shown and "5/20, 2.00 s each, 0:30 left" in shown and "staleness" not in shown


def test_a_run_without_training_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="no training in it"):
        watch.find_training(str(tmp_path))
