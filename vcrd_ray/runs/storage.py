"""A run's folder in object storage: what was finished here is pushed, what was finished elsewhere is pulled.

One library for s3://, gs:// and mounted disks: pyarrow.fs, which has its credentials from the environment or the node's
role. Knows nothing of what the files are.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import filelock
from pyarrow import fs

from vcrd_ray.errors import StorageError
from vcrd_ray.runs.files import written_aside

T = TypeVar("T")
logger = logging.getLogger(__name__)

_ATTEMPTS = 7
_FIRST_PAUSE_S = 0.5
_THREADS = 8
_HOPELESS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
"""What object storage says that no second try changes."""


def local_path(path: str) -> Path:
    """A directory of this machine for a directory or a folder in storage."""
    return local_copy(path) if is_remote(path) else Path(path)


def is_remote(path: str) -> bool:
    """Whether this names a folder in storage rather than a directory of this machine."""
    return "://" in path


@dataclass(frozen=True)
class Store:
    """A folder in storage. Pickles; every call is tried again when the store fails."""

    uri: str
    """Such as s3://bucket/runs/demo; what follows a question mark is for pyarrow (?endpoint_override=host:port)."""
    attempts: int = field(default=_ATTEMPTS, compare=False)

    @cached_property
    def opened(self) -> tuple[fs.FileSystem, str]:
        """pyarrow's file system, and the path of this folder in it."""
        opened: tuple[fs.FileSystem, str] = self._retried("opened", "", lambda: fs.FileSystem.from_uri(self.uri))
        return opened

    def __getstate__(self) -> dict[str, object]:
        return {"uri": self.uri, "attempts": self.attempts}

    def within(self, name: str) -> Store:
        """A folder in this one."""
        parts = urlsplit(self.uri)
        return Store(parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl(), self.attempts)

    def name(self, name: str = "") -> str:
        """How people call a file here; without what is only for pyarrow."""
        parts = urlsplit(self.uri)
        return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}" + (f"/{name}" if name else "")

    def files(self, folder: str = "") -> dict[str, str]:
        """Names of all files in a folder and below, relative to this store, each with what changes when it does."""
        system, root = self.opened

        def look() -> list[fs.FileInfo]:
            selector = fs.FileSelector(_join(root, folder), recursive=True, allow_not_found=True)
            found: list[fs.FileInfo] = system.get_file_info(selector)
            return found

        infos = [info for info in self._retried("listed", folder, look) if info.type == fs.FileType.File]
        return {info.path[len(root) :].strip("/"): f"{info.size} {info.mtime_ns}" for info in infos}

    def push(self, local: Path, name: str) -> None:
        """Copy a file, or all files of a directory, to this name.

        Raises:
            StorageError: the store refused, again and again.
        """
        if local.is_file():
            self._push_file(local, name)
            return
        files = [file for file in sorted(local.rglob("*")) if file.is_file()]
        self._each(lambda file: self._push_file(file, _join(name, file.relative_to(local).as_posix())), files)

    def pull(self, name: str, local: Path) -> bool:
        """Copy a folder's files into a directory; whether there were any. What else is in the directory stays.

        Raises:
            StorageError: the store refused, again and again.
        """
        names = list(self.files(name))
        self._each(lambda file: self._pull_file(file, local / file[len(name) :].lstrip("/")), names)
        return bool(names)

    def pull_file(self, name: str, local: Path) -> bool:
        """Copy one file; whether it was there."""
        try:
            self._pull_file(name, local)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> str | None:
        """A small file's text; None where there is none."""
        system, root = self.opened

        def get() -> str | None:
            try:
                with system.open_input_stream(_join(root, name)) as stream:
                    return bytes(stream.read()).decode()
            except FileNotFoundError:
                return None

        return self._retried("read", name, get)

    def write(self, name: str, text: str) -> None:
        """Write a small file."""
        system, root = self.opened

        def put() -> None:
            self._make_parent(name)
            with system.open_output_stream(_join(root, name)) as stream:
                stream.write(text.encode())

        self._retried("written", name, put)

    def remove(self, name: str) -> None:
        """Remove a file or a folder; none is fine."""
        system, root = self.opened

        def delete() -> None:
            path = _join(root, name)
            with suppress(FileNotFoundError):
                kind = system.get_file_info(path).type
                if kind == fs.FileType.Directory:
                    system.delete_dir(path)
                elif kind == fs.FileType.File:
                    system.delete_file(path)

        self._retried("removed", name, delete)

    def _push_file(self, local: Path, name: str) -> None:
        system, root = self.opened

        def copy() -> None:
            self._make_parent(name)
            final = _join(root, name)
            # A mounted disk shows a file while it grows; object storage shows it whole or not at all.
            mounted = system.type_name == "local"
            with written_aside(Path(final)) if mounted else nullcontext(final) as path:
                fs.copy_files(
                    str(local), str(path), source_filesystem=fs.LocalFileSystem(), destination_filesystem=system
                )

        self._retried("written", name, copy)

    def _pull_file(self, name: str, local: Path) -> None:
        system, root = self.opened
        local.parent.mkdir(parents=True, exist_ok=True)

        def copy() -> None:
            source = _join(root, name)
            with written_aside(local) as path:
                fs.copy_files(source, str(path), source_filesystem=system, destination_filesystem=fs.LocalFileSystem())

        self._retried("read", name, copy)

    def _make_parent(self, name: str) -> None:
        system, root = self.opened
        if system.type_name == "local":
            system.create_dir(_join(root, name).rpartition("/")[0], recursive=True)

    def _each(self, work: Callable[[T], None], items: Iterable[T]) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            for done in [pool.submit(work, item) for item in items]:
                done.result()

    def _retried(self, done: str, name: str, call: Callable[[], T]) -> T:
        for attempt in range(self.attempts):
            try:
                return call()
            except FileNotFoundError:
                raise
            except (OSError, ValueError) as error:
                last = error
                if isinstance(error, ValueError) or any(word in str(error) for word in _HOPELESS):
                    break
                if attempt + 1 < self.attempts:
                    pause = _FIRST_PAUSE_S * 2**attempt
                    logger.warning("%s could not be %s (%s); again in %g s", self.name(name), done, error, pause)
                    time.sleep(pause)
        raise StorageError(
            f"{self.name(name)} could not be {done} in {attempt + 1} tries: {last}; check the bucket, its free space and the"
            " credentials in the environment, and run the same command again"
        ) from last


def _join(root: str, name: str) -> str:
    return "/".join(part for part in (root.rstrip("/"), name) if part)


class Mirror:
    """A local directory and its folder in storage. Files with a leading dot, and `skip` at the top, stay here."""

    def __init__(self, local: Path, store: Store, *, skip: frozenset[str] = frozenset()) -> None:
        self._local = local
        self._store = store
        self._skip = skip
        self._known: dict[str, tuple[int, int]] = {}
        """Size and time of each file when it was last the same on both sides."""
        self._one_at_a_time = threading.Lock()

    def pull(self, *, only_missing: bool = False) -> None:
        """Take over what is in storage; with `only_missing`, what is here stays as it is."""
        with self._one_at_a_time:
            for name in self._store.files():
                if self._counts(name) and not (only_missing and (self._local / name).exists()):
                    self._store.pull_file(name, self._local / name)
                    self._known[name] = _stamp(self._local / name)

    def push(self) -> None:
        """Bring storage up to date."""
        with self._one_at_a_time:
            for path in sorted(self._local.rglob("*")):
                name = path.relative_to(self._local).as_posix()
                if not self._counts(name) or not path.is_file():
                    continue
                stamp = _stamp(path)
                if self._known.get(name) != stamp:
                    self._store.push(path, name)
                    self._known[name] = stamp

    def _counts(self, name: str) -> bool:
        parts = name.split("/")
        return parts[0] not in self._skip and not any(part.startswith(".") for part in parts)


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def local_copy(uri: str) -> Path:
    """A folder of storage as a directory of this machine: copied when it is first asked for, and when it has changed.

    Raises:
        StorageError: nothing is there, or the store refused.
    """
    store = Store(uri)
    files = store.files()
    if not files:
        raise StorageError(f"{store.name()}: nothing is there; check its spelling")
    state = hashlib.sha256(repr((store.name(), sorted(files.items()))).encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "vcrd_ray"
    directory = root / state
    root.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(root / f"{state}.lock"):
        if not directory.is_dir():
            with written_aside(directory, one_writer=True) as temporary:
                store.pull("", temporary)
    return directory
