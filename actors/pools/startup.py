"""Pools and the student group start side by side; what they tell each other meanwhile goes through notes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from actors.pools.pool import Pool
from actors.pools.requests import Request
from actors.ranks.notes import ControlNotes
from vcrd_ray.errors import ScheduleError, StoppedError, VcrdError

_LOOK_S = 0.2


@contextmanager
def pools_beside(pools: Sequence[Pool], judge: Pool | None, notes: ControlNotes, *, timeout_s: float) -> Iterator[None]:
    """The driver's side: bring the pools up while the block runs, and end them behind it.

    A note is left when they can be asked, or why they cannot. `judge`: that of them whose identity ranks must know.
    """

    def wait() -> None:
        try:
            for pool in pools:
                pool.wait_ready(timeout_s)
            said = {"judge": None if judge is None else judge_fingerprint(judge)}
        except Exception as error:
            said = {"error": str(error) if isinstance(error, VcrdError) else f"{type(error).__name__}: {error}"}
        notes.leave("pools", said)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        yield
    finally:
        # Their end is the thread's end too.
        for pool in pools:
            pool.stop()
        thread.join()


def judge_fingerprint(pool: Pool) -> str:
    """Identity of the judge that a ready pool holds."""
    client = pool.client()
    return cast(
        str, client.result(client.submit(Request(id="fingerprint", method="fingerprint", args=())), timeout_s=60)
    )


def await_pools(notes: ControlNotes) -> str | None:
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
