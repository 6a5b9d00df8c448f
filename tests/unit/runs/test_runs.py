"""Run directories: one process, one configuration, nothing half written."""

import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vcrd_ray.config import Config
from vcrd_ray.errors import CheckpointError, RunDirectoryError
from vcrd_ray.runs import checkpoints, directory
from vcrd_ray.runs.directory import RunDirectory
from vcrd_ray.runs.files import read_jsonl, temporary_of, write_json, written_aside
from vcrd_ray.runs.tracking import MetricsLog


def hold(root: Path, held: Any, release: Any) -> None:
    with RunDirectory(root, "distill", Config(), sections=("run",)):
        held.set()
        release.wait(30)


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path, held, release))
    process.start()
    assert held.wait(30)
    with pytest.raises(RunDirectoryError, match=f"in use by process {process.pid}"):
        RunDirectory(tmp_path, "distill", Config(), sections=("run",))
    release.set()
    process.join(30)
    with RunDirectory(tmp_path, "distill", Config(), sections=("run",)) as directory:
        assert (directory.path / "versions.json").is_file() and (directory.path / "config.yaml").is_file()


def test_another_configuration_is_refused_and_the_keys_are_named(tmp_path: Path) -> None:
    with RunDirectory(tmp_path, "j", Config(), sections=("run", "distill")) as directory:
        (directory.path / "metrics.jsonl").touch()
    changed = Config.model_validate({"distill": {"chunk_rows": 7, "overlap": False}})
    with pytest.raises(RunDirectoryError, match=r"distill\.chunk_rows: 256 then, 7 now") as caught:
        RunDirectory(tmp_path, "j", changed, sections=("run", "distill"))
    assert "overlap" not in str(caught.value), "how a run is carried out may change"


def test_a_job_that_was_refused_before_it_made_anything_may_be_put_right(tmp_path: Path) -> None:
    with pytest.raises(ValueError), RunDirectory(tmp_path, "j", Config(), sections=("run", "distill")):
        raise ValueError("no rollouts there")
    changed = Config.model_validate({"distill": {"chunk_rows": 7}})
    with RunDirectory(tmp_path, "j", changed, sections=("run", "distill")) as directory:
        assert "chunk_rows: 7" in (directory.path / "config.yaml").read_text()


@pytest.mark.parametrize("key", ["evaluate.thinking", "evaluate.math.timeout_s", "run.seed"])
def test_a_key_that_an_earlier_version_did_not_know_had_its_default(tmp_path: Path, key: str) -> None:
    *sections, name = key.split(".")
    with RunDirectory(tmp_path, "job", Config(), sections=("run", "evaluate")) as directory:
        file = directory.path / "config.yaml"
        (directory.path / "result.json").touch()
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    section = content
    for one in sections:
        section = section[one]
    value = section.pop(name)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with RunDirectory(tmp_path, "job", Config(), sections=("run", "evaluate")):
        pass
    section[name] = "another"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(RunDirectoryError, match=f"{key}: 'another' then, {re.escape(repr(value))} now"):
        RunDirectory(tmp_path, "job", Config(), sections=("run", "evaluate"))


def test_a_path_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        RunDirectory(tmp_path / "file", "j", Config(), sections=())


def test_metrics_of_updates_that_will_be_done_again_are_cut(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, next_update=0)
    for update in range(5):
        log.write(update, {"loss": float(update)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"update": 5, "lo')  # killed in the middle of a line
    log = MetricsLog(tmp_path, next_update=3)
    log.write(3, {"loss": 30.0})
    log.close()
    assert [(r["update"], r["loss"]) for r in read_jsonl(tmp_path / "metrics.jsonl")] == [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 30),
    ]


def folder(directory: Path) -> checkpoints.CheckpointManager:
    return checkpoints.CheckpointManager(local=directory, rank=0, leads=True, barrier=lambda: None, keep=2)


def save(directory: Path, update: int, write: Any = lambda path: (path / "x").write_text("x")) -> None:
    record = checkpoints.CheckpointRecord(next_update=update, world_size=1, fingerprints={"teacher": "t"})
    folder(directory).save(record, write=write)


def test_the_newest_complete_checkpoint_is_found_and_old_ones_go(tmp_path: Path) -> None:
    assert folder(tmp_path).newest() is None
    for update in (1, 2, 3):
        save(tmp_path, update)
    (tmp_path / "update-000009").mkdir()  # no record: not complete
    found = folder(tmp_path).newest()
    assert found is not None and found[1].next_update == 3
    assert not (tmp_path / "update-000001").exists() and (tmp_path / "update-000002" / "x").is_file()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def write(path: Path) -> None:
        (path / "half").write_text("...")
        with Path("/dev/full").open("w") as full:
            full.write("x" * 100_000)

    with pytest.raises(CheckpointError, match=r"the disk is full; the last good one is .*update-000001"):
        save(tmp_path, 2, write)
    found = folder(tmp_path).newest()
    assert found is not None and found[1].next_update == 1
    assert not list(tmp_path.glob(".update*")), "nothing half written stays behind"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_size": 2}, "made by 1 ranks, this run has 2"),
        ({"fingerprints": {"teacher": "u"}}, "teacher t, this run has u"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change: dict[str, Any], message: str) -> None:
    record = checkpoints.CheckpointRecord(next_update=1, world_size=1, fingerprints={"teacher": "t"})
    with pytest.raises(CheckpointError, match=message):
        checkpoints.check_resumable(
            record, **({"world_size": 1, "fingerprints": {"teacher": "t"}, "any_size": False} | change)
        )


def test_a_state_that_is_the_same_on_every_rank_goes_on_with_any_number() -> None:
    record = checkpoints.CheckpointRecord(next_update=1, world_size=1, fingerprints={"teacher": "t"})
    checkpoints.check_resumable(record, world_size=2, fingerprints={"teacher": "t"}, any_size=True)


def test_json_is_written_aside_first(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("one_writer", [True, False])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_written_aside_replaces_the_old_whole_or_not_at_all(
    tmp_path: Path, kind: str, one_writer: bool
) -> None:
    def write(path: Path, text: str) -> None:
        if kind == "directory":
            path.mkdir()
            path = path / f"{text}.txt"
        path.write_text(text)

    def found() -> str:
        (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
        return path.read_text()

    final = tmp_path / "final"
    write(final, "old")
    with pytest.raises(OSError, match="no space"), written_aside(final, one_writer=one_writer) as temporary:
        write(temporary, "half")
        raise OSError("no space")
    assert found() == "old"
    with written_aside(final, one_writer=one_writer) as temporary:
        write(temporary, "new")
        assert temporary.parent == tmp_path and temporary.name.startswith(".")
    assert found() == "new" and list(tmp_path.iterdir()) == [final]


def test_the_only_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    temporary_of(tmp_path / "model").mkdir()
    (temporary_of(tmp_path / "model") / "half").touch()
    with written_aside(tmp_path / "model", one_writer=True) as temporary:
        temporary.mkdir()
        (temporary / "whole").touch()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["whole"]


def test_nothing_replaces_a_path_where_nothing_was_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))), written_aside(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "old"


def test_what_a_resumed_run_may_change_is_what_it_was() -> None:
    assert sorted(directory._FREE_TO_CHANGE) == [
        "cluster",
        "distill.checkpoint_every",
        "distill.keep_checkpoints",
        "distill.overlap",
        "distill.prefetch",
        "distill.stop_after",
        "evaluate.replicas",
        "judge.cache",
        "judge.max_crashes",
        "judge.max_set_aside",
        "judge.min_replicas",
        "judge.replicas",
        "rollouts.refresh.canary_tolerance",
        "rollouts.refresh.min_replicas",
        "rollouts.refresh.replicas",
        "rollouts.refresh.sync_timeout_s",
        "run.dir",
        "run.must_save_by",
        "run.project",
        "run.resume",
        "run.storage",
        "run.trackers",
        "sft.checkpoint_every",
        "sft.keep_checkpoints",
        "sft.stop_after",
        "student.export_dtype",
        "student.max_failures",
        "student.min_ranks",
        "student.ranks",
        "teacher.min_replicas",
        "teacher.replicas",
    ]
