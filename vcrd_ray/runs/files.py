"""Small files and directories that a reader never sees half written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError

from vcrd_ray.errors import CheckpointError, DiskFullError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How the writers of torch and safetensors, which raise no OSError, report a write that the system refused.
_FULL_WORDS = re.compile("|".join(("PytorchStreamWriter", "unexpected pos", *map(os.strerror, _FULL))))


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that there is no room for what was written."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, DiskFullError):
            return True
        if isinstance(found, OSError) and found.errno is not None:
            if found.errno in _FULL:
                return True
        elif isinstance(found, OSError | RuntimeError | SafetensorError) and _FULL_WORDS.search(str(found)):
            return True
        found = found.__cause__
    return False


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file that this package wrote; a last line cut off by a kill is left out."""
    return parse_jsonl(path.read_text(encoding="utf-8"))


def parse_jsonl(text: str) -> list[dict[str, Any]]:
    """The same of a file's text."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_text(path: Path, text: str) -> None:
    """Write a text file, `written_aside`."""
    with written_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON; pydantic models are dumped."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, indent=2) + "\n")


@contextmanager
def written_aside(path: Path, *, one_writer: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed onto it when the block ends well, removed when it fails.

    The block makes a file there, or a directory, which takes the place of an older one by `replace_directory`. Its content
    is on the disk before the name is: a machine that loses power leaves the old, or all of the new.

    Args:
        one_writer: nobody else writes `path` meanwhile. The temporary path is `temporary_of` then, which others may
            write into, and what a writer that was killed left there is removed first. Otherwise the name is this
            thread's own.
    """
    own = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    temporary = temporary_of(path) if one_writer else own
    _remove(temporary)
    try:
        yield temporary
        sync(temporary)
        if temporary.is_dir():
            replace_directory(temporary, path)
        else:
            os.replace(temporary, path)
        _sync_one(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{path} could not be written: the disk is full; free some space and run the same command again"
        ) from error
    finally:
        _remove(temporary)


def temporary_of(path: Path) -> Path:
    """Where the only writer of `path` writes it aside."""
    return path.with_name(f".{path.name}.tmp")


def sync(path: Path) -> None:
    """Return when a file, or a directory with all that is in it, is on the disk itself."""
    for each in (path, *path.rglob("*")):
        _sync_one(each)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def replace_directory(complete: Path, final: Path) -> None:
    """Make a complete directory visible under its final name; an older one of that name is removed only afterwards."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if final.exists():
            os.replace(final, old)
        os.replace(complete, final)
    except OSError as error:
        raise CheckpointError(f"{final}: could not be put in place: {error}") from error
    shutil.rmtree(old, ignore_errors=True)


def read_text(path: Path) -> str | None:
    """A small file's text; None where it cannot be read, as before it was written."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
