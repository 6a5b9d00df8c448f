"""Checkpoints of a run in progress: written aside, renamed when complete, the newest complete one found again.

Knows nothing of what is in them but a small record of how far the run was.

    checkpoints/update-000050/record.json ...    complete
    checkpoints/.update-000100.tmp/              never read
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from vcrd_ray.errors import CheckpointError
from vcrd_ray.runs import replace_directory, write_json

_RECORD = "record.json"
_NAME = re.compile(r"update-(\d{6})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How far a run was, and what it was a run of."""

    next_update: int
    world_size: int
    fingerprints: dict[str, str]
    state: dict[str, object] = field(default_factory=dict)
    """What the objective has learnt about its run; plain numbers."""


def newest(directory: Path) -> tuple[Path, Record] | None:
    """The last complete checkpoint, or None."""
    found = _complete(directory)
    if not found:
        return None
    content = json.loads((found[-1] / _RECORD).read_text(encoding="utf-8"))
    return found[-1], Record(**content)


def _complete(directory: Path) -> list[Path]:
    return sorted(p for p in directory.glob("update-*") if _NAME.fullmatch(p.name) and (p / _RECORD).is_file())


def complete(directory: Path) -> list[int]:
    """The next update of every checkpoint that a run can go on from."""
    return [int(p.name.removeprefix("update-")) for p in _complete(directory)]


def check_resumable(record: Record, *, world_size: int, fingerprints: dict[str, str]) -> None:
    """Refuse to go on with other models, data or ranks than before.

    Raises:
        CheckpointError: names what differs and the cure.
    """
    for name, value in fingerprints.items():
        earlier = record.fingerprints.get(name)
        if earlier != value:
            raise CheckpointError(
                f"the checkpoint was made with {name} {earlier}, this run has {value}; restore it, or choose another --run.dir"
            )
    if record.world_size != world_size:
        raise CheckpointError(
            f"the checkpoint was made by {record.world_size} ranks, this run has {world_size}; set student.ranks accordingly"
        )


def save(
    directory: Path, record: Record, *, write: Callable[[Path], None], rank: int, barrier: Callable[[], None], keep: int
) -> None:
    """Write one checkpoint with all ranks; the ones before it are touched only once it is complete.

    Args:
        write: writes this rank's part into the directory it is given.
        barrier: returns when all ranks have come to it.

    Raises:
        CheckpointError: the disk is full or refuses; earlier checkpoints are as they were.
    """
    final = directory / f"update-{record.next_update:06d}"
    aside = directory / f".{final.name}.tmp"
    try:
        if rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        barrier()
        write(aside)
        barrier()
        if rank == 0:
            write_json(aside / _RECORD, asdict(record))
            replace_directory(aside, final)
            for old in sorted(directory.glob("update-*"))[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        barrier()
    except (OSError, RuntimeError) as error:
        # torch.save reports a full disk as a RuntimeError of its zip writer.
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        shutil.rmtree(aside, ignore_errors=True)
        full = isinstance(error, RuntimeError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = "the disk is full" if full else str(error)
        last = newest(directory)
        raise CheckpointError(
            f"checkpoint {final} could not be written: {cause}; the last good one is {last[0] if last else 'none'}."
            " Free some space and run the same command again"
        ) from error
