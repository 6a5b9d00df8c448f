"""Checkpoints of a run in progress: written aside, the newest complete one found again.

Knows nothing of what is in them but their record.

    checkpoints/update-000050/record.json ...    complete
    checkpoints/.update-000100.tmp/              never read

On disks that all ranks share, rank 0 makes and removes directories. With storage each node has its own: the ranks of a node
write into its directory, the node's first rank pushes it, and the record comes last, once every node has pushed. The record
holds size and hash of every file, and a checkpoint that is not as it was written is passed over, by all ranks alike.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vcrd_ray.errors import CheckpointError, DiskFullError, StorageError
from vcrd_ray.runs.checkpoint_record import RECORD, CheckpointRecord, damage, describe_files, read_record
from vcrd_ray.runs.files import is_disk_full, read_text, temporary_of, write_json, written_aside
from vcrd_ray.runs.storage import Store

logger = logging.getLogger(__name__)

_NAME = re.compile(r"update-(\d{6})")


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
    gather: Callable[[Any], list[Any]] = lambda own: [own]
    """One rank's value -> those of all ranks, in their order, on every rank."""
    warn: Callable[[str], None] = logger.warning
    """Told on rank 0 of a checkpoint that is damaged."""

    def newest(self) -> tuple[Path, CheckpointRecord] | None:
        """The last checkpoint that is whole, brought here if need be; None where there is none. All ranks call it.

        One that is damaged is passed over by all ranks, with a warning that says what is wrong with it.

        Raises:
            CheckpointError: there are checkpoints, and none is whole.
        """
        passed: list[str] = []
        world_size = len(self.gather(None))
        for number in self.gather(self._numbers() if self.leads else [])[0]:
            path = self.local / _name(number)
            faults = [fault for fault in self.gather(self._fault(path, world_size)) if fault]
            if faults:
                passed.append(f"{path}: {faults[0]}")
                continue
            for fault in passed if self.rank == 0 else ():
                self.warn(f"a checkpoint is damaged, and passed over: {fault}; going on from {path}")
            return path, read_record(path)
        if passed:
            raise CheckpointError(
                f"no checkpoint is whole: {'; '.join(passed)}. Restore one from a copy, or remove {self.store or self.local}"
                " to begin with update 0"
            )
        return None

    def _numbers(self) -> list[int]:
        """Updates done at each checkpoint, the last first."""
        if self.store is None:
            # A directory gets its name when it has its record: one without was harmed since.
            return sorted(map(_number, _named(self.local)), reverse=True)
        names = _complete_in(self.store)
        # What was never said to be complete there is not part of the run.
        for path in _complete(self.local):
            if not names or path.name > names[-1]:
                shutil.rmtree(path, ignore_errors=True)
        return [int(_NAME.fullmatch(name)[1]) for name in reversed(names)]  # type: ignore[index]

    def _fault(self, path: Path, world_size: int) -> str | None:
        """What this rank finds wrong with a checkpoint; None: nothing. Ranks that share a disk share the reading."""
        if self.store is None:
            return damage(path, _number(path), slice(self.rank, None, world_size))
        return self._bring(self.store, path) if self.leads else None

    def _bring(self, store: Store, path: Path) -> str | None:
        same = store.read(f"{path.name}/{RECORD}") == read_text(path / RECORD)
        # Each node writes the parts of its own ranks, and these may run elsewhere now.
        all_here = all((path / name).is_file() for name in store.within(path.name).files())
        if same and all_here and damage(path, _number(path), slice(None)) is None:
            return None
        with written_aside(path, one_writer=True) as temporary:
            store.pull(path.name, temporary)
        return damage(path, _number(path), slice(None))

    def complete(self) -> list[int]:
        """The next update of every checkpoint here that a run can go on from."""
        return [*map(_number, _complete(self.local))]

    def save(self, record: CheckpointRecord, *, write: Callable[[Path], None]) -> Path:
        """Write one checkpoint with all ranks; the ones before it are touched only once it is complete. Where it is.

        Args:
            write: writes this rank's part into the directory it is given.

        Raises:
            CheckpointError: the disk or the store is full or refuses; earlier checkpoints are as they were.
        """
        final = self.local / _name(record.next_update)
        temporary = temporary_of(final)
        try:
            with written_aside(final, one_writer=True) if self.leads else nullcontext():
                self._write(temporary, final.name, record, write)
            if self.leads:
                self._prune(final.name)
            self.barrier()
            return final
        except (OSError, RuntimeError, StorageError, DiskFullError) as error:
            full = is_disk_full(error) and not isinstance(error, StorageError)
            if isinstance(error, RuntimeError) and not full:
                raise
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(self._not_written(final, "the disk is full" if full else str(error))) from error

    def _write(self, temporary: Path, name: str, record: CheckpointRecord, write: Callable[[Path], None]) -> None:
        """This rank's part of a checkpoint, and the record once all ranks have written theirs."""
        if self.leads:
            temporary.mkdir(parents=True)
        self.barrier()
        write(temporary)
        self.barrier()
        written = self.gather(self._written(temporary, record.world_size))
        if self.store is not None and self.leads:
            self.store.push(temporary, name)
        self.barrier()
        if self.rank == 0:
            files = {file: facts for of_rank in written for file, facts in of_rank.items()}
            write_json(temporary / RECORD, asdict(replace(record, files=files)))
            if self.store is not None:
                self.store.push(temporary / RECORD, f"{name}/{RECORD}")
        if self.store is not None:
            self.barrier()
            if self.leads and self.rank > 0:
                self.store.pull_file(f"{name}/{RECORD}", temporary / RECORD)

    def _written(self, directory: Path, world_size: int) -> dict[str, tuple[int, str]]:
        """Size and hash of this rank's share of the files that are there."""
        share = slice(self.rank, None, world_size) if self.store is None else slice(None if self.leads else 0)
        return describe_files(directory, share)

    def _prune(self, newest: str) -> None:
        """Keep this one and those before it; what has a later name was passed over when the run went on from before it."""
        kept = [path for path in _complete(self.local) if path.name <= newest][-self.keep :]
        for path in set(_named(self.local)) - set(kept):
            shutil.rmtree(path, ignore_errors=True)
        if self.store is not None and self.rank == 0:
            names = _complete_in(self.store)
            for name in set(names) - set([name for name in names if name <= newest][-self.keep :]):
                # First what makes it complete.
                self.store.remove(f"{name}/{RECORD}")
                self.store.remove(name)

    def _not_written(self, final: Path, cause: str) -> str:
        cure = "Free some space and run the same command again" if "full" in cause else "Run the same command again"
        before = [path for path in _complete(self.local) if path.name < final.name]
        last = before[-1] if before else "none"
        return f"checkpoint {final} could not be written: {cause}; the last good one is {last}. {cure}"


def _name(number: int) -> str:
    return f"update-{number:06d}"


def _number(path: Path) -> int:
    return int(path.name.removeprefix("update-"))


def _named(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("update-*") if _NAME.fullmatch(path.name))


def _complete(directory: Path) -> list[Path]:
    return [path for path in _named(directory) if (path / RECORD).is_file()]


def _complete_in(store: Store) -> list[str]:
    records = (name for name in store.files() if name.endswith(f"/{RECORD}"))
    return sorted(name for name in (r.removesuffix(f"/{RECORD}") for r in records) if _NAME.fullmatch(name))


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
