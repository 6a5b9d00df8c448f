"""What makes a checkpoint whole: its record, and whether the files are those that it was written with. Writes nothing."""

from __future__ import annotations

import hashlib
import struct
import uuid
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from vcrd_ray.errors import CheckpointError

RECORD = "record.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """How far a run was, and what it was a run of."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    next_update: int
    world_size: int
    fingerprints: dict[str, str]
    state: dict[str, object] = field(default_factory=dict)
    """What the objective has learnt about its run; plain numbers."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False)
    """Tells two checkpoints of the same update apart."""
    files: dict[str, tuple[int, str]] = field(default_factory=dict, compare=False)
    """Bytes and SHA-256 of every other file of the checkpoint; runs of before have none."""


_READER = TypeAdapter(CheckpointRecord)


def read_record(directory: Path) -> CheckpointRecord:
    """Of a complete checkpoint."""
    return _READER.validate_json((directory / RECORD).read_bytes())


def _files(directory: Path) -> list[Path]:
    """All but the record, in a fixed order."""
    return sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / RECORD)


def describe_files(directory: Path, share: slice) -> dict[str, tuple[int, str]]:
    """Bytes and hash of a share of the files that a checkpoint holds so far."""
    return {
        file.relative_to(directory).as_posix(): (file.stat().st_size, _sha256(file))
        for file in _files(directory)[share]
    }


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def damage(directory: Path, next_update: int, share: slice) -> str | None:
    """How the checkpoint of an update differs from what was written, as far as its record and a share of its files tell.

    Raises:
        CheckpointError: it may not be read, so nobody knows.
    """
    try:
        record = read_record(directory)
        if record.next_update != next_update:
            return f"{RECORD} is of update {record.next_update}"
        return _damaged_file(directory, record.files, share) if record.files else _damaged_archive(directory, share)
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(directory)} is missing"
    except PermissionError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror}); make it readable") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return f"{RECORD} is no record: {': '.join((*map(str, first['loc']), first['msg']))}"
    except OSError as error:
        return str(error)


def _damaged_file(directory: Path, files: dict[str, tuple[int, str]], share: slice) -> str | None:
    for name in sorted(files)[share]:
        size, digest = files[name]
        found = (directory / name).stat().st_size
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
        if _sha256(directory / name) != digest:
            return f"{name} does not hold what was written"
    return None


def _damaged_archive(directory: Path, share: slice) -> str | None:
    """The same where no hashes were kept: torch's files are archives with a checksum of each tensor."""
    files = _files(directory)
    if not files:
        return "its state is missing"
    for file in (file for file in files[share] if file.suffix == ".pt"):
        try:
            if zipfile.ZipFile(file).testzip() is not None:
                return f"{file.relative_to(directory)} does not hold what was written"
        except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, struct.error):
            return f"{file.relative_to(directory)} is empty or cut off"
    return None
