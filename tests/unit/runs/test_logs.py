"""Structured logs say of which run, role and update a line is."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from vcrd_ray.config import Config
from vcrd_ray.runs import logs
from vcrd_ray.runs.directory import RunDirectory


def test_a_job_leaves_lines_for_people_and_for_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_context", {})
    with RunDirectory(tmp_path / "demo", "distill", Config(), sections=("run",)) as directory:
        logging.getLogger("vcrd_ray.x").warning("a judge %s", "died")
        logs.log_as(update=7)
        try:
            raise ValueError("what went wrong")
        except ValueError:
            logging.getLogger("vcrd_ray.x").exception("it failed")
    first, second = [json.loads(line) for line in (directory.path / "log.jsonl").read_text().splitlines()]
    assert (first["run"], first["role"], first["level"], first["message"]) == (
        "demo/distill",
        "driver",
        "WARNING",
        "a judge died",
    )
    assert "update" not in first and second["update"] == 7 and "what went wrong" in second["exception"]
    assert "WARNING vcrd_ray.x: a judge died" in (directory.path / "log.txt").read_text()
    logging.getLogger("vcrd_ray.x").warning("after the job")
    assert len((directory.path / "log.jsonl").read_text().splitlines()) == 2


def test_a_worker_writes_json_lines_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "_context", {})
    root = logging.getLogger()
    before = list(root.handlers)
    try:
        logs.log_as(stderr=True, role="judge", replica=3)
        logs.log_as(stderr=True)
        assert len(root.handlers) == len(before) + 1
        logging.getLogger("vcrd_ray.y").error("no")
        row = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert (row["role"], row["replica"], row["message"]) == ("judge", 3, "no")
    finally:
        for handler in set(root.handlers) - set(before):
            root.removeHandler(handler)
