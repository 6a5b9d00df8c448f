"""Checkpoints of a run in progress: written aside, the newest complete one found again.

Knows nothing of what is in them but a small record of how far the run was.

    checkpoints/update-000050/record.json ...    complete
    checkpoints/.update-000100.tmp/              never read

On disks that all ranks share, rank 0 makes and removes directories. With storage each node has its own: the ranks of a node
write into its directory, the node's first rank pushes it, and the record comes last, once every node has pushed.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vcrd_ray.errors import CheckpointError, StorageError
from vcrd_ray.runs.files import read_text, temporary_of, write_json, written_aside
from vcrd_ray.runs.storage import Store

_RECORD = "record.json"
_NAME = re.compile(r"update-(\d{6})")


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """How far a run was, and what it was a run of."""

    next_update: int
    world_size: int
    fingerprints: dict[str, str]
    state: dict[str, object] = field(default_factory=dict)
    """What the objective has learnt about its run; plain numbers."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)
    """Tells two checkpoints of the same update apart."""


@dataclass(frozen=True, kw_only=True)
class CheckpointManager:
    """Where one rank finds the checkpoints of a run."""

    local: Path
    rank: int
    leads: bool
    """Whether this rank makes and removes directories: rank 0, or with storage the first rank of each node."""
    barrier: Callable[[], None]
    """Returns when all ranks have come to it."""
    keep: int
    """Complete checkpoints that stay."""
    store: Store | None = None
    """The same folder in storage; it is the truth where there is one."""

    def newest(self) -> tuple[Path, CheckpointRecord] | None:
        """The last complete checkpoint, brought here if need be; None where there is none. All ranks call it."""
        if self.store is not None:
            if self.leads:
                self._fetch(self.store)
            self.barrier()
        found = _complete(self.local)
        if not found:
            return None
        return found[-1], _read_record(found[-1] / _RECORD)

    def _fetch(self, store: Store) -> None:
        numbers = _complete_in(store)
        # What was never said to be complete there is not part of the run.
        for path in _complete(self.local):
            if not numbers or path.name > numbers[-1]:
                shutil.rmtree(path, ignore_errors=True)
        if not numbers:
            return
        same = store.read(f"{numbers[-1]}/{_RECORD}") == read_text(self.local / numbers[-1] / _RECORD)
        # Each node writes the parts of its own ranks, and these may run elsewhere now.
        if not same or not all(
            (self.local / numbers[-1] / name).is_file() for name in store.within(numbers[-1]).files()
        ):
            with written_aside(self.local / numbers[-1], one_writer=True) as temporary:
                store.pull(numbers[-1], temporary)

    def complete(self) -> list[int]:
        """The next update of every checkpoint here that a run can go on from."""
        return [int(p.name.removeprefix("update-")) for p in _complete(self.local)]

    def save(self, record: CheckpointRecord, *, write: Callable[[Path], None]) -> None:
        """Write one checkpoint with all ranks; the ones before it are touched only once it is complete.

        Args:
            write: writes this rank's part into the directory it is given.

        Raises:
            CheckpointError: the disk or the store is full or refuses; earlier checkpoints are as they were.
        """
        final = self.local / f"update-{record.next_update:06d}"
        temporary = temporary_of(final)
        try:
            with written_aside(final, one_writer=True) if self.leads else nullcontext():
                self._write(temporary, final.name, record, write)
            if self.leads:
                self._prune()
            self.barrier()
        except (OSError, RuntimeError, StorageError) as error:
            # torch.save reports a full disk as a RuntimeError of its zip writer.
            if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(self._not_written(final, error)) from error

    def _write(self, temporary: Path, name: str, record: CheckpointRecord, write: Callable[[Path], None]) -> None:
        """This rank's part of a checkpoint, and the record once all ranks have written theirs."""
        if self.leads:
            temporary.mkdir(parents=True)
        self.barrier()
        write(temporary)
        self.barrier()
        if self.store is not None and self.leads:
            self.store.push(temporary, name)
        self.barrier()
        if self.rank == 0:
            write_json(temporary / _RECORD, asdict(record))
            if self.store is not None:
                self.store.push(temporary / _RECORD, f"{name}/{_RECORD}")
        if self.store is not None:
            self.barrier()
            if self.leads and self.rank > 0:
                self.store.pull_file(f"{name}/{_RECORD}", temporary / _RECORD)

    def _prune(self) -> None:
        for old in sorted(self.local.glob("update-*"))[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        if self.store is not None and self.rank == 0:
            for name in _complete_in(self.store)[: -self.keep]:
                # First what makes it complete.
                self.store.remove(f"{name}/{_RECORD}")
                self.store.remove(name)

    def _not_written(self, final: Path, error: Exception) -> str:
        cause, cure = str(error), "Run the same command again"
        full = isinstance(error, RuntimeError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if full and not isinstance(error, StorageError):
            cause, cure = "the disk is full", "Free some space and run the same command again"
        last = _complete(self.local)
        return f"checkpoint {final} could not be written: {cause}; the last good one is {last[-1] if last else 'none'}. {cure}"


def _complete(directory: Path) -> list[Path]:
    return sorted(p for p in directory.glob("update-*") if _NAME.fullmatch(p.name) and (p / _RECORD).is_file())


def _complete_in(store: Store) -> list[str]:
    records = (name for name in store.files() if name.endswith(f"/{_RECORD}"))
    return sorted(name for name in (r.removesuffix(f"/{_RECORD}") for r in records) if _NAME.fullmatch(name))


def _read_record(path: Path) -> CheckpointRecord:
    return CheckpointRecord(**json.loads(path.read_text(encoding="utf-8")))


def check_resumable(record: CheckpointRecord, *, world_size: int, fingerprints: dict[str, str], any_size: bool) -> None:
    """Refuse to go on with other models or data than before, or with other ranks where the state is split over them.

    Args:
        any_size: the state is the same on every rank.

    Raises:
        CheckpointError: names what differs and the cure.
    """
    for name, value in fingerprints.items():
        earlier = record.fingerprints.get(name)
        if earlier != value:
            raise CheckpointError(
                f"the checkpoint was made with {name} {earlier}, this run has {value}; restore it, or choose another --run.dir"
            )
    if record.world_size != world_size and not any_size:
        raise CheckpointError(
            f"the checkpoint was made by {record.world_size} ranks, this run has {world_size}, and student.zero_stage splits"
            " its state over them; set student.ranks accordingly"
        )
