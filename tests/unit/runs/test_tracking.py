"""Metrics reach MLflow and Weights & Biases, a resumed run goes on in its place, a server that is away ends nothing."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from vcrd_ray.errors import ConfigError
from vcrd_ray.runs.files import read_jsonl
from vcrd_ray.runs.tracking import MetricsLog, check_trackers, flat_params


@pytest.fixture
def mlflow_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    uri = (tmp_path / "mlruns").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def test_a_resumed_run_is_one_run_in_mlflow(tmp_path: Path, mlflow_files: str) -> None:
    from mlflow.tracking import MlflowClient

    for first in (0, 2):
        log = MetricsLog(tmp_path, next_update=first, trackers=("mlflow",), name="demo/distill", params={"run.seed": 7})
        for update in (first, first + 1):
            log.write(update, {"loss": 10.0 - update, "weights/p95": math.nan})
        log.show(first, {"watch/pass_at_1": 0.5})
        log.close()
    client = MlflowClient(mlflow_files)
    experiment = client.get_experiment_by_name("vcrd_ray")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (
        run.info.run_name == "demo/distill" and run.data.params == {"run.seed": "7"} and run.info.status == "FINISHED"
    )
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 10.0), (1, 9.0), (2, 8.0), (3, 7.0)]
    assert client.get_metric_history(run.info.run_id, "watch/pass_at_1")[-1].step == 2


@pytest.mark.slow
def test_wandb_keeps_a_run_that_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = MetricsLog(tmp_path, next_update=0, trackers=("wandb",), name="demo/distill")
    log.write(0, {"loss": 1.0})
    log.close()
    import wandb

    wandb.teardown()  # its service would live as long as this process, and may still be writing
    run = (tmp_path / "wandb_run_id").read_text()
    (kept,) = (tmp_path / "wandb").glob(f"offline-run-*-{run}/run-{run}.wandb")
    assert b"loss" in kept.read_bytes()


def test_a_tracker_that_fails_is_told_of_once_and_ends_nothing(
    tmp_path: Path, mlflow_files: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    log = MetricsLog(tmp_path, next_update=0, trackers=("mlflow",), name="x")

    def away(*args: object, **named: object) -> None:
        raise ConnectionError("the server is away")

    monkeypatch.setattr(MlflowClient, "log_batch", away)
    with caplog.at_level(logging.WARNING):
        for update in range(3):
            log.write(update, {"loss": 1.0})
        log.close()
    assert [r.message for r in caplog.records if "MLflow: the server is away" in r.message] == [
        caplog.records[-1].message
    ]
    assert [row["update"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 1, 2]


def test_a_tracker_that_is_not_installed_is_refused_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers(())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"run.trackers wandb: .* pip install 'vcrd-ray\[track\]'"):
        check_trackers(("wandb",))


def test_nested_configurations_become_dotted_keys() -> None:
    assert flat_params({"run": {"seed": 1, "x": {"y": None}}, "z": [2]}) == {"run.seed": 1, "run.x.y": None, "z": [2]}
