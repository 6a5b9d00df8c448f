"""Run directories in storage, against a real S3 server and a mounted disk."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from tests.buckets import Bucket, bucket
from vcrd_ray.config import Config
from vcrd_ray.errors import CheckpointError, RunDirectoryError, StorageError
from vcrd_ray.runs import checkpoints, storage
from vcrd_ray.runs.directory import RunDirectory
from vcrd_ray.runs.lease import RunLease
from vcrd_ray.runs.storage import Mirror, Store, local_copy

pytestmark = pytest.mark.slow

__all__ = ["bucket"]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FIRST_PAUSE_S", 0.0)


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> Store:
    return bucket.store("run") if request.param == "s3" else Store((tmp_path / "disk" / "run").as_uri())


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_is_pushed_comes_back_and_can_be_removed(store: Store, tmp_path: Path) -> None:
    store.push(tree(tmp_path / "a", x="1", deep__y="2"), "folder")
    assert set(store.files()) == {"folder/x", "folder/deep/y"} and set(store.within("folder").files()) == {
        "x",
        "deep/y",
    }
    again = pickle.loads(pickle.dumps(store))
    assert again.pull("folder", tmp_path / "b") and (tmp_path / "b" / "deep" / "y").read_text() == "2"
    store.remove("folder/x")
    store.remove("folder/x")
    assert set(store.files("folder")) == {"folder/deep/y"}
    store.remove("folder")
    assert not store.files() and not store.pull("folder", tmp_path / "c") and store.read("folder/x") is None


def test_a_store_that_fails_now_and_then_is_asked_again(bucket: Bucket, tmp_path: Path) -> None:
    left = [2]

    def fails(method: str, path: str) -> bool:
        left[0] -= method == "PUT"
        return method == "PUT" and left[0] >= 0

    bucket.fails = fails
    bucket.store("run").push(tree(tmp_path, x="1") / "x", "x")
    bucket.fails = lambda method, path: False
    assert bucket.store("run").read("x") == "1" and sum(m == "PUT" for m, p in bucket.asked if p.endswith("/x")) == 3


def test_a_store_that_does_not_answer_is_named_with_the_cure(tmp_path: Path) -> None:
    nobody = Store("s3://bucket/run?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1", attempts=1)
    with pytest.raises(StorageError, match=r"^s3://bucket/run/x could not be written in 1 tries: .*credentials"):
        nobody.push(tree(tmp_path, x="1") / "x", "x")


def test_a_missing_bucket_is_not_asked_twice(bucket: Bucket, tmp_path: Path) -> None:
    other = Store(bucket.uri("run").replace("s3://bucket", "s3://missing"), attempts=3)
    with pytest.raises(StorageError, match="in 1 tries"):
        other.push(tree(tmp_path, x="1") / "x", "x")


def test_a_mirror_pushes_only_what_changed_and_never_what_is_excluded(bucket: Bucket, tmp_path: Path) -> None:
    here = tree(tmp_path / "here", metrics="1", checkpoints__big="2", tensorboard__events="3")
    (here / ".lock").touch()
    mirror = Mirror(here, bucket.store("run"), skip=frozenset({"checkpoints"}))
    mirror.push()
    assert set(bucket.store("run").files()) == {"metrics", "tensorboard/events"}
    bucket.asked.clear()
    tree(here, metrics="1 and more")
    mirror.push()
    assert {path for method, path in bucket.asked if method == "PUT"} == {"/bucket/run/metrics"}
    there = Mirror(tmp_path / "there", bucket.store("run"))
    there.pull()
    assert (tmp_path / "there" / "metrics").read_text() == "1 and more"
    bucket.asked.clear()
    there.push()
    assert not any(method == "PUT" for method, _ in bucket.asked), "what was pulled is known"


def folder(local: Path, store: Store, rank: int = 0) -> checkpoints.CheckpointManager:
    return checkpoints.CheckpointManager(local=local, rank=rank, leads=True, barrier=lambda: None, keep=2, store=store)


def save(folder: checkpoints.CheckpointManager, update: int) -> None:
    record = checkpoints.CheckpointRecord(next_update=update, world_size=1, fingerprints={})
    folder.save(record, write=lambda path: (path / "state").write_text(str(update)) and None)


def test_another_node_goes_on_from_the_checkpoint_in_storage(store: Store, tmp_path: Path) -> None:
    for update in (1, 2, 3):
        save(folder(tmp_path / "a", store), update)
    assert {name.split("/")[0] for name in store.files()} == {"update-000002", "update-000003"}
    found = folder(tmp_path / "b", store).newest()
    assert found is not None and found[1].next_update == 3 and (found[0] / "state").read_text() == "3"


def test_storage_is_right_where_a_node_knows_something_else(store: Store, tmp_path: Path) -> None:
    save(folder(tmp_path / "a", store), 4)
    # A node's own leftovers: a later checkpoint that was never complete for all, an older state of the same update.
    for update, text in ((4, "stale"), (5, "alone")):
        local = checkpoints.CheckpointManager(local=tmp_path / "b", rank=0, leads=True, barrier=lambda: None, keep=9)
        local.save(
            checkpoints.CheckpointRecord(next_update=update, world_size=1, fingerprints={}),
            write=lambda path, text=text: (path / "state").write_text(text) and None,
        )
    found = folder(tmp_path / "b", store).newest()
    assert found is not None and found[1].next_update == 4 and (found[0] / "state").read_text() == "4"


def test_a_checkpoint_without_its_record_is_none(store: Store, tmp_path: Path) -> None:
    save(folder(tmp_path / "a", store), 1)
    store.push(tree(tmp_path / "half", state="2"), "update-000002")  # killed before the record
    found = folder(tmp_path / "b", store).newest()
    assert found is not None and found[1].next_update == 1


def test_a_store_that_is_full_leaves_the_last_good_checkpoint(bucket: Bucket, tmp_path: Path) -> None:
    keeper = folder(tmp_path / "a", bucket.store("run", attempts=1))
    save(keeper, 1)
    bucket.fails = lambda method, path: method in ("PUT", "POST")
    with pytest.raises(CheckpointError, match=r"update-000002 could not be written: s3://.*last good one is .*000001"):
        save(keeper, 2)
    bucket.fails = lambda method, path: False
    found = folder(tmp_path / "b", bucket.store("run")).newest()
    assert found is not None and found[1].next_update == 1


def test_one_job_holds_a_run_and_a_dead_one_is_replaced(store: Store, tmp_path: Path) -> None:
    waits: list[float] = []
    first = RunLease(tree(tmp_path / "a", config="1"), store, wait=waits.append)

    def renewed(seconds: float) -> None:
        waits.append(seconds)
        store.write("lease.json", json.dumps({"holder": "process 1 on other", "directory": "/x", "time": "9e99"}))

    with pytest.raises(RunDirectoryError, match="is in use by"):
        RunLease(tmp_path / "b", store, wait=renewed)
    second = RunLease(tmp_path / "b", store, wait=waits.append)  # nothing was renewed meanwhile: taken over
    assert len(waits) == 2
    first.close()
    second.close()
    third = RunLease(tmp_path / "c", store, wait=waits.append)
    assert len(waits) == 2 and (tmp_path / "c" / "config").read_text() == "1"
    third.close()


def test_a_run_directory_is_the_same_on_every_machine(store: Store, tmp_path: Path) -> None:
    def config(machine: str, **run: str) -> Config:
        return Config.model_validate({"run": {"dir": tmp_path / machine, "storage": store.uri, **run}})

    with RunDirectory(tmp_path / "a", "job", config("a"), sections=("student",)) as directory:
        (directory.path / "answers.jsonl").write_text("{}")
    with pytest.raises(RunDirectoryError, match="holds a run already"):
        RunDirectory(tmp_path / "b", "job", config("b", resume="never"), sections=("student",))
    other = Config.model_validate({**config("b").model_dump(), "student": {"path": "tiny:other"}})
    with pytest.raises(RunDirectoryError, match=r"another configuration \(student.path"):
        RunDirectory(tmp_path / "b", "job", other, sections=("student",))
    with RunDirectory(tmp_path / "b", "job", config("b", resume="must"), sections=("student",)) as directory:
        assert (directory.path / "answers.jsonl").read_text() == "{}"
    with pytest.raises(RunDirectoryError, match="holds no run to go on with"):
        RunDirectory(tmp_path / "b", "another", config("b", resume="must"), sections=("student",))


def test_a_folder_of_storage_is_copied_once_and_again_when_it_changed(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = bucket.store("model")
    with pytest.raises(StorageError, match="nothing is there"):
        local_copy(store.uri)
    store.push(tree(tmp_path / "m", weights="1"), "")
    first = local_copy(store.uri)
    bucket.asked.clear()
    assert local_copy(store.uri) == first and not any(p.endswith("weights") for _, p in bucket.asked)
    store.push(tree(tmp_path / "m", weights="22") / "weights", "weights")
    assert (local_copy(store.uri) / "weights").read_text() == "22" and (first / "weights").read_text() == "1"


@pytest.mark.parametrize(
    ("uri", "message"),
    [("bucket/run", "not a folder in storage"), ("s3://key:secret@bucket/run", "must hold no credentials")],
)
def test_storage_that_is_none_is_refused(uri: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"run": {"storage": uri}})
