"""A training that must save before its time: the job was told to end, a node is being taken away, or the time is up.

The driver is told by a signal, nodes by Ray (a node that is drained, for a preemption or otherwise), the time by the
configuration. Ranks agree after every update, so that all of them save and leave after the same one.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray.train
import torch

from actors.ranks.notes import ControlNotes
from vcrd_ray.errors import StoppedError
from vcrd_ray.models.backend import Backend
from vcrd_ray.training.trainer import StopRule

_TOLD = "the job was told to end (SIGTERM)"
_TIME_IS_UP = "the time is up (run.must_save_by)"
_POLL_S = 0.2
_SLACK_S = 5.0
"""Before the deadline, beside what an update and a checkpoint take."""
_UPDATES_PER_SAVE = 10.0
"""Seconds of training for a second of saving, while a node is about to leave."""


@contextmanager
def stop_on_sigterm(notes: ControlNotes) -> Iterator[None]:
    """For the time of the block SIGTERM asks the ranks that read these notes to save and leave.

    A second SIGTERM ends this process at once. Outside the main thread, where no signal arrives, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told, over = threading.Event(), threading.Event()

    def pass_on() -> None:
        # Not from the handler: it may interrupt a call into Ray that cannot be entered twice.
        while not over.is_set():
            if told.wait(_POLL_S):
                notes.leave("stop", True)
                return

    def handler(signum: int, frame: object) -> None:
        if told.is_set():
            raise SystemExit(signum)
        told.set()

    before = signal.signal(signal.SIGTERM, handler)
    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)


class EarlyStop(StopRule):
    """One rank's side. All ranks ask after every update."""

    def __init__(self, backend: Backend, notes: ControlNotes, *, must_save_by: float | None) -> None:
        """`must_save_by`: seconds since the epoch."""
        self._backend = backend
        self._notes = notes
        self._must_save_by = must_save_by
        self._reason: str | None = None
        self._longest_update = 0.0
        self._longest_save = 0.0
        self._last = self._last_saved = time.monotonic()

    def must_save(self) -> bool:
        """Whether a checkpoint must be written after this update, because the run ends or one of its nodes leaves.

        Ray Train trains on until a leaving node's time is up and then starts the group again from the last checkpoint.
        So checkpoints follow one another as closely as their cost allows.
        """
        now = time.monotonic()
        self._longest_update = max(self._longest_update, now - self._last)
        leaving = ray.train.get_preemption_info() is not None
        stop, save = 0.0, 0.0
        if self._backend.rank == 0:
            stop = self._stop_code()
            save = float(leaving and now - self._last_saved >= _UPDATES_PER_SAVE * self._longest_save)
        agreed = self._backend.sum_over_ranks(torch.tensor([stop, save], device=self._backend.student.device))
        stop, save = agreed.tolist()
        self._reason = {0: None, 1: _TOLD, 2: _TIME_IS_UP}[int(stop)]
        return bool(stop or save)

    def done(self, *, saved_s: float) -> None:
        self._longest_save = max(self._longest_save, saved_s)
        self._last = time.monotonic()
        if saved_s:
            self._last_saved = self._last
        if self._reason is not None:
            raise StoppedError(f"{self._reason}; everything is saved: run the same command again to go on")

    def _stop_code(self) -> float:
        if self._notes.read("stop"):
            return 1.0
        ahead = time.time() + self._longest_update + 2 * self._longest_save + _SLACK_S
        return 2.0 if self._must_save_by is not None and ahead >= self._must_save_by else 0.0
