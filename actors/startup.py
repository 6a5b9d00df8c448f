"""Pools and the student group start side by side; what they tell each other meanwhile goes through notes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from actors.notes import Notes
from actors.pools import Pool, judge_fingerprint
from vcrd_ray.errors import ScheduleError, StoppedError, VcrdError

_LOOK_S = 0.2


class PoolStart:
    """The driver's side: waits for pools in a thread and leaves a note when they can be asked, or why they cannot."""

    def __init__(self, pools: Sequence[Pool], judge: Pool | None, notes: Notes, *, timeout_s: float) -> None:
        """Begin. `judge`: the pool among them whose identity ranks must know."""
        self._pools, self._judge, self._notes, self._timeout_s = pools, judge, notes, timeout_s
        self.over = False
        """Whether the note is left."""
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            for pool in self._pools:
                pool.wait_ready(self._timeout_s)
            said = {"judge": None if self._judge is None else judge_fingerprint(self._judge)}
        except Exception as error:
            said = {"error": str(error) if isinstance(error, VcrdError) else f"{type(error).__name__}: {error}"}
        self._notes.leave("pools", said)
        self.over = True

    def join(self) -> None:
        """Wait for the thread. Behind the pools' end, which ends it too."""
        self._thread.join()


@contextmanager
def pools_beside(pools: Sequence[Pool], judge: Pool | None, notes: Notes, *, timeout_s: float) -> Iterator[PoolStart]:
    """Bring the pools up while the block runs, and end them behind it."""
    start = PoolStart(pools, judge, notes, timeout_s=timeout_s)
    try:
        yield start
    finally:
        for pool in pools:
            pool.stop()
        start.join()


def await_pools(notes: Notes) -> str | None:
    """A rank's side: wait until the pools can be asked; identity of what the judges answer with, if there are any.

    Raises:
        ScheduleError: a pool is not there in time, or died at start.
        StoppedError: the run was told to end meanwhile.
    """
    while (said := notes.read("pools")) is None:
        if notes.read("stop"):
            raise StoppedError(
                "the job was told to end before its pools were ready; run the same command again to go on"
            )
        time.sleep(_LOOK_S)
    if "error" in said:
        raise ScheduleError(said["error"])
    judge: str | None = said["judge"]
    return judge
