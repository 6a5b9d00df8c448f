"""Run directories: one lock, one resolved config, versions, metrics and atomically written results. Knows no models.

<run.dir>/<job>/config.yaml versions.json metrics.jsonl tensorboard/ checkpoints/ log.txt log.jsonl
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import yaml

from vcrd_ray.config import Config
from vcrd_ray.config.base import keys
from vcrd_ray.config.run import Resume
from vcrd_ray.config.yaml_files import read_yaml
from vcrd_ray.errors import RunDirectoryError
from vcrd_ray.runs.files import read_text, write_json, write_text
from vcrd_ray.runs.lease import RunLease
from vcrd_ray.runs.logs import log_as, log_to
from vcrd_ray.runs.storage import Store

PACKAGES = ("vcrd-ray", "torch", "ray", "transformers", "peft", "deepspeed", "pydantic", "numpy")

# Where there is nothing else, a job was refused before it made anything: it may be put right and started again.
_WRITTEN_HERE = {".holder", ".lock", "config.yaml", "log.jsonl", "log.txt", "versions.json"}
_FREE_TO_CHANGE = frozenset(key for key, free in keys(Config) if free)


class RunDirectory:
    """The folder of one job, locked for as long as the process holds it.

    Raises:
        RunDirectoryError: another process holds it, it cannot be written, or it was made with another configuration.
    """

    def __init__(self, root: Path, job: str, config: Config, *, sections: tuple[str, ...]) -> None:
        self.path = (root / job).resolve()
        self.job = job
        self._stored: RunLease | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.path / ".lock")
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            holder = read_text(self.path / ".holder") or "another process"
            raise RunDirectoryError(
                f"run directory {self.path} is in use by {holder}; wait for it, or choose another --run.dir"
            ) from None
        except OSError as error:
            raise RunDirectoryError(f"run directory {self.path} cannot be written: {error}") from error
        (self.path / ".holder").write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        try:
            if config.run.storage is not None:
                self._stored = RunLease(self.path, Store(config.run.storage).within(job))
            self._check_resume(config.run.resume)
            self._record(config, sections)
            log_as(run=f"{root.name}/{job}", role="driver")
            self._handlers = log_to(self.path)
        except BaseException:
            if self._stored is not None:
                self._stored.close()
            self._lock.release()
            raise

    def _check_resume(self, resume: Resume) -> None:
        holds_run = (self.path / "config.yaml").exists()
        if resume == "never" and holds_run:
            raise RunDirectoryError(
                f"run directory {self.path} holds a run already, and --resume never was given; choose another --run.dir"
            )
        if resume == "must" and not holds_run:
            raise RunDirectoryError(
                f"run directory {self.path} holds no run to go on with, as --resume must asks; check --run.dir and"
                " --run.storage"
            )

    def pull_results(self, done_file: str) -> None:
        """With storage: take over what ranks on other nodes have left, once `done_file` says that they are done."""
        if self._stored is not None:
            self._stored.pull_results(done_file)

    def pull(self) -> None:
        """With storage: take over what was written on other nodes."""
        if self._stored is not None:
            self._stored.pull()

    def _record(self, config: Config, sections: tuple[str, ...]) -> None:
        resolved = {name: value for name, value in config.model_dump(mode="json").items() if name in sections}
        file = self.path / "config.yaml"
        if file.exists() and not {entry.name for entry in self.path.iterdir()} <= _WRITTEN_HERE:
            earlier = read_yaml(file)
            changed = _differences(earlier, resolved, Config().model_dump(mode="json"))
            if changed:
                raise RunDirectoryError(
                    f"run directory {self.path} holds a run with another configuration ({', '.join(changed)});"
                    " choose another --run.dir, or remove the directory to start over"
                )
        write_text(file, yaml.safe_dump(resolved, sort_keys=False))
        write_json(self.path / "versions.json", versions())

    def close(self) -> None:
        """Release the lock; the directory stays."""
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()
        try:
            if self._stored is not None:
                self._stored.close()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            logging.getLogger(__name__).error("%s stopped: %s", self.job, error)
        self.close()


def _differences(earlier: Any, now: Any, default: Any, key: str = "") -> list[str]:
    """What differs. A key that the earlier configuration lacks is one of a later version: then its default was in force."""
    if key in _FREE_TO_CHANGE:
        return []
    if isinstance(earlier, dict) and isinstance(now, dict):
        defaults = default if isinstance(default, dict) else {}
        names = list(dict.fromkeys([*earlier, *now]))
        return [
            found
            for name in names
            for found in _differences(
                earlier.get(name, defaults.get(name)),
                now.get(name),
                defaults.get(name),
                f"{key}.{name}" if key else name,
            )
        ]
    return [] if earlier == now else [f"{key}: {earlier!r} then, {now!r} now"]


def versions() -> dict[str, str | None]:
    """What a result was made with."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["git_commit"] = _git_commit()
    found["command"] = " ".join(sys.argv)
    return found


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode != 0:
        return None
    return commit.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "")
