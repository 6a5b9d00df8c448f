"""Checkpoints that a crash, a disk or somebody harmed: passed over by all ranks alike, with a word, or one clear error."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from vcrd_ray.errors import CheckpointError, DiskFullError
from vcrd_ray.runs.checkpoint_record import CheckpointRecord
from vcrd_ray.runs.checkpoints import CheckpointManager
from vcrd_ray.runs.files import is_disk_full, written_aside


def write_state(directory: Path) -> None:
    torch.save({"weights": torch.arange(64.0)}, directory / "state.pt")
    (directory / "state").mkdir()
    torch.save({"optimizer": torch.ones(64)}, directory / "state" / "rank_0.pt")


def manager(directory: Path, told: list[str], *, keep: int = 3) -> CheckpointManager:
    return CheckpointManager(local=directory, rank=0, leads=True, barrier=lambda: None, keep=keep, warn=told.append)


def save(directory: Path, *updates: int, write: Callable[[Path], None] = write_state, keep: int = 3) -> None:
    for update in updates:
        record = CheckpointRecord(next_update=update, world_size=1, fingerprints={})
        manager(directory, [], keep=keep).save(record, write=write)


def without_hashes(checkpoint: Path) -> None:
    """As runs of before left it."""
    record = json.loads((checkpoint / "record.json").read_text())
    del record["files"]
    (checkpoint / "record.json").write_text(json.dumps(record))


def change_record(**changes: object) -> Callable[[Path], object]:
    def change(checkpoint: Path) -> None:
        record = json.loads((checkpoint / "record.json").read_text())
        (checkpoint / "record.json").write_text(
            json.dumps({k: v for k, v in (record | changes).items() if v != "gone"})
        )

    return change


HARMS: dict[str, tuple[Callable[[Path], object], str]] = {
    "record missing": (lambda c: (c / "record.json").unlink(), "record.json is missing"),
    "record empty": (lambda c: (c / "record.json").write_text(""), "record.json is no record"),
    "record cut": (lambda c: (c / "record.json").write_text('{"next_up'), "record.json is no record"),
    "record of bytes": (lambda c: (c / "record.json").write_bytes(b"\xff\xfe\x00"), "record.json is no record"),
    "record is a list": (lambda c: (c / "record.json").write_text("[]"), "record.json is no record"),
    "field missing": (change_record(world_size="gone"), "world_size"),
    "field too many": (change_record(later=1), "later"),
    "field of another type": (change_record(fingerprints=3), "fingerprints"),
    "record of another update": (change_record(next_update=1), "is of update 1"),
    "state empty": (lambda c: (c / "state.pt").write_bytes(b""), "state.pt has 0 bytes"),
    "state cut": (
        lambda c: (c / "state.pt").write_bytes((c / "state.pt").read_bytes()[:900]),
        "state.pt has 900 bytes",
    ),
    "state missing": (lambda c: (c / "state.pt").unlink(), "state.pt is missing"),
    "state of a folder missing": (lambda c: (c / "state" / "rank_0.pt").unlink(), "state/rank_0.pt is missing"),
    "state of another": (
        lambda c: torch.save({"weights": torch.zeros(64)}, c / "state.pt"),
        "state.pt does not hold what was written",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_checkpoint_is_passed_over_with_a_word(tmp_path: Path, harm: str) -> None:
    save(tmp_path, 1, 2, 3)
    damage, why = HARMS[harm]
    damage(tmp_path / "update-000003")
    told: list[str] = []
    found = manager(tmp_path, told).newest()
    assert found is not None and found[0].name == "update-000002" and found[1].next_update == 2
    (said,) = told
    assert "update-000003" in said and why in said and "update-000002" in said and "\n" not in said


def test_two_damaged_ones_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    for update in (2, 3):
        (tmp_path / f"update-00000{update}" / "state.pt").write_bytes(b"")
    told: list[str] = []
    found = manager(tmp_path, told).newest()
    assert found is not None and found[1].next_update == 1 and len(told) == 2


def test_nothing_whole_is_one_error_with_the_files_and_a_cure(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "update-000001" / "record.json").write_text("")
    (tmp_path / "update-000002" / "state.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"update-000002: state.pt has 0 bytes.*update-000001.*remove") as caught:
        manager(tmp_path, []).newest()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("harm", "goes_on"),
    [(lambda s: None, 2), (lambda s: s.write_bytes(b""), 1), (lambda s: s.write_bytes(s.read_bytes()[:900]), 1)],
)
def test_records_without_hashes_still_load_and_their_archives_are_tested(
    tmp_path: Path, harm: Callable[[Path], object], goes_on: int
) -> None:
    save(tmp_path, 1, 2)
    for update in (1, 2):
        without_hashes(tmp_path / f"update-00000{update}")
    harm(tmp_path / "update-000002" / "state.pt")
    found = manager(tmp_path, []).newest()
    assert found is not None and found[1].next_update == goes_on


def test_what_was_passed_over_does_not_crowd_out_what_is_saved_after_it(tmp_path: Path) -> None:
    save(tmp_path, 1, 5, keep=2)
    (tmp_path / "update-000005" / "state.pt").write_bytes(b"")
    save(tmp_path, 2, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["update-000002"]


class Ranks:
    """Ranks in threads that meet where a process group would."""

    def __init__(self, size: int) -> None:
        self.size, self._meet, self._values = size, threading.Barrier(size, timeout=20), [None] * size

    def manager(self, rank: int, local: Path, told: list[str]) -> CheckpointManager:
        def gather(own: Any) -> list[Any]:
            self._values[rank] = own
            self._meet.wait()
            values = list(self._values)
            self._meet.wait()
            return values

        return CheckpointManager(
            local=local,
            rank=rank,
            leads=rank == 0,
            barrier=lambda: gather(None) and None,
            keep=3,
            gather=gather,
            warn=told.append,
        )

    def each(self, work: Callable[[int], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, range(self.size)))


@pytest.mark.parametrize("harmed", ["part-0", "part-1", "part-2"])
def test_all_ranks_go_on_from_the_same_one_whoever_finds_the_damage(tmp_path: Path, harmed: str) -> None:
    ranks = Ranks(3)
    for update in (1, 2):
        record = CheckpointRecord(next_update=update, world_size=3, fingerprints={})
        ranks.each(
            lambda rank, record=record: ranks.manager(rank, tmp_path, []).save(
                record, write=lambda path: (path / f"part-{rank}").write_text(f"{rank}") and None
            )
        )
    record = json.loads((tmp_path / "update-000002" / "record.json").read_text())
    assert sorted(record["files"]) == ["part-0", "part-1", "part-2"]
    (tmp_path / "update-000002" / harmed).write_text("x")
    told: list[str] = []
    found = ranks.each(lambda rank: ranks.manager(rank, tmp_path, told).newest())
    assert [record.next_update for _, record in found] == [1, 1, 1] and len(told) == 1 and harmed in told[0]


FULL = {
    "no space": OSError(errno.ENOSPC, "No space left on device"),
    "quota": OSError(errno.EDQUOT, "Disk quota exceeded"),
    "torch": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 598"),
    "torch's writer": RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_full_disk_is_one_error_and_keeps_what_was_good(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 1)

    def write(directory: Path) -> None:
        (directory / "half").write_text("...")
        raise FULL[kind]

    with pytest.raises(
        CheckpointError, match=r"the disk is full; the last good one is .*update-000001\. Free some space"
    ):
        save(tmp_path, 2, write=write)
    assert [path.name for path in tmp_path.iterdir()] == ["update-000001"]
    found = manager(tmp_path, []).newest()
    assert found is not None and found[1].next_update == 1


def test_other_errors_are_not_taken_for_a_full_disk() -> None:
    assert not is_disk_full(PermissionError(errno.EACCES, "Permission denied"))
    assert not is_disk_full(RuntimeError("Connection closed by peer")) and not is_disk_full(ValueError("No space left"))


WRITERS = """
import sys, resource, signal, torch
from pathlib import Path
from vcrd_ray.runs.files import written_aside
limit = 50_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
big = torch.zeros(100_000)
def safetensors(path):
    from safetensors.torch import save_file
    save_file({"a": big}, path)
def parquet(path):
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq
    with path.open("wb") as file:
        pq.write_table(pa.table({"a": np.random.rand(100_000)}), file)
writers = {
    "torch": lambda path: torch.save(big, path),
    "safetensors": safetensors,
    "parquet": parquet,
    "text": lambda path: path.write_text("x" * 400_000),
}
folder = Path(sys.argv[1])
for name, write in writers.items():
    (folder / name).write_text("old")
    try:
        with written_aside(folder / name) as path:
            write(path)
    except Exception as error:
        print(name, type(error).__name__, (folder / name).read_text(), len(list(folder.iterdir())), error)
    (folder / name).unlink()
"""


def test_whoever_writes_a_full_disk_is_the_same_error(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", WRITERS, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert [line.split()[:4] for line in lines] == [
        [name, "DiskFullError", "old", "1"] for name in ("torch", "safetensors", "parquet", "text")
    ]
    assert all(str(tmp_path / line.split()[0]) in line and "free some space" in line for line in lines)


def test_a_full_disk_inside_a_folder_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match=r"model could not be written"), written_aside(tmp_path / "model") as path:
        path.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
