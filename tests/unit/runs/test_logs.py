"""Structured logs say of which run, role and update a line is."""

from __future__ import annotations

import json
import logging
import threading
from contextvars import ContextVar
from pathlib import Path

import pytest

from vcrd_ray.config import Config
from vcrd_ray.runs import logs
from vcrd_ray.runs.directory import RunDirectory


@pytest.fixture(autouse=True)
def nothing_said_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_identity", {})
    monkeypatch.setattr(logs, "_update", ContextVar[int | None]("update", default=None))


def test_a_job_leaves_lines_for_people_and_for_programs(tmp_path: Path) -> None:
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


def test_a_worker_writes_json_lines_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
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


def test_threads_share_who_the_process_is_and_each_says_its_own_update() -> None:
    formatter, both_told = logs.JsonLines(), threading.Barrier(2, timeout=60)
    said: dict[str, dict[str, object]] = {}

    def say(name: str) -> None:
        record = logging.LogRecord("vcrd_ray.z", logging.WARNING, "z.py", 1, "slow", None, None)
        said[name] = json.loads(formatter.format(record))

    def work(update: int) -> None:
        logs.log_as(update=update)
        both_told.wait()
        say(f"judging {update}")

    threads = [threading.Thread(target=work, args=(update,)) for update in (3, 4)]
    background = threading.Thread(target=say, args=("background",))
    logs.log_as(role="judge", replica=7)
    for thread in [*threads, background]:
        thread.start()
    for thread in [*threads, background]:
        thread.join()
    say("main")
    assert {(row["role"], row["replica"]) for row in said.values()} == {("judge", 7)}
    assert {name: row.get("update") for name, row in said.items()} == {
        "judging 3": 3,
        "judging 4": 4,
        "background": None,
        "main": None,
    }


def test_a_thread_says_its_update_until_it_is_told_another() -> None:
    record = logging.LogRecord("vcrd_ray.z", logging.WARNING, "z.py", 1, "slow", None, None)
    for told, expected in ((0, 0), (None, 0), (5, 5)):
        logs.log_as(update=told)
        assert json.loads(logs.JsonLines().format(record))["update"] == expected


def test_the_projects_warnings_are_shown_to_who_waits_and_nothing_else_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = logs.log_to(tmp_path)
    try:
        logging.getLogger("actors.ranks.group").warning("3 rows were not judged")
        logging.getLogger("actors.ranks.group").error("stopped")
        logging.getLogger("actors.ranks.group").info("going on")
        logging.getLogger("somebody.else").warning("deprecated")
    finally:
        for handler in handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
    assert capsys.readouterr().err == "warning: 3 rows were not judged\n"
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 4


def test_a_log_on_a_full_disk_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    for handler in logs.log_to(tmp_path):
        logging.getLogger("full").warning("x" * 100_000)
        logging.getLogger().removeHandler(handler)
        handler.close()
