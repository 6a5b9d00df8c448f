"""One job's run directory, kept in storage while the job holds it. Knows nothing of what the files are."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from vcrd_ray.errors import RunDirectoryError, StorageError
from vcrd_ray.runs.storage import Mirror, Store

logger = logging.getLogger(__name__)

_LEASE = "lease.json"
NOT_MIRRORED = frozenset({"checkpoints", "ray_train", "student_versions", _LEASE})
"""What ranks push themselves, when it is complete, and what is of no use elsewhere."""
_PUSH_EVERY_S = 30.0
_RENEW_S = 10.0
_LEASE_S = 45.0
"""A holder that has not renewed its lease for so long is dead."""


class RunLease:
    """Holds the lease on a folder in storage, takes over what is in it, and pushes what changes from time to time."""

    def __init__(self, local: Path, store: Store, *, wait: Callable[[float], None] = time.sleep) -> None:
        """Take the lease; a dead holder's after a while.

        Raises:
            RunDirectoryError: another job holds the folder.
            StorageError: the store refused, again and again.
        """
        self._local = local
        self._store = store
        self._mirror = Mirror(local, store, skip=NOT_MIRRORED)
        self._me = {"holder": f"process {os.getpid()} on {socket.gethostname()}", "directory": str(local)}
        self._take_lease(wait)
        self._mirror.pull()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, daemon=True)
        self._thread.start()

    def pull(self) -> None:
        """Take over what was pushed from other nodes and is not here."""
        self._mirror.pull(only_missing=True)

    def pull_results(self, done_file: str) -> None:
        """Take over what ranks on other nodes have left, unless they ran here."""
        theirs, ours = self._store.read(done_file), self._local / done_file
        if theirs is not None and (not ours.exists() or ours.read_text(encoding="utf-8") != theirs):
            self._mirror.pull()

    def close(self) -> None:
        """Push all that is left and let go.

        Raises:
            StorageError: the store refused, again and again; the files are in the local directory.
        """
        self._over.set()
        self._thread.join()
        self._mirror.push()
        self._store.remove(_LEASE)

    def _take_lease(self, wait: Callable[[float], None]) -> None:
        found = self._read_lease()
        if found is not None and not self._is_dead(found):
            logger.warning("%s is held by %s; waiting whether it is alive", self._store.name(), found["holder"])
            wait(_LEASE_S)
            if self._read_lease() not in (found, None):
                raise RunDirectoryError(
                    f"{self._store.name()} is in use by {found['holder']}; wait for it, or choose another --run.storage"
                )
        self._renew()

    def _is_dead(self, lease: dict[str, str]) -> bool:
        # This process holds the local directory's lock, which a living holder of the same directory would hold.
        same_place = (lease["holder"].split(" on ")[-1], lease["directory"]) == (
            self._me["holder"].split(" on ")[-1],
            self._me["directory"],
        )
        return same_place or time.time() - float(lease["time"]) > 10 * _LEASE_S

    def _read_lease(self) -> dict[str, str] | None:
        text = self._store.read(_LEASE)
        return None if text is None else dict(json.loads(text))

    def _renew(self) -> None:
        self._store.write(_LEASE, json.dumps({**self._me, "id": uuid.uuid4().hex, "time": str(time.time())}))

    def _keep_up(self) -> None:
        pushed = time.monotonic()
        while not self._over.wait(_RENEW_S):
            try:
                self._renew()
                if time.monotonic() - pushed > _PUSH_EVERY_S:
                    self._mirror.push()
                    pushed = time.monotonic()
            except (StorageError, OSError) as error:
                # What is not pushed now is pushed at the end, or with the next checkpoint.
                logger.warning("%s", error)
