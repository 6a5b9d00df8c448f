"""How far a job is, for a person: a bar in a terminal, lines in a log; and a training that can be told to end. No torch."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vcrd_ray.config import Config
from vcrd_ray.report.live import wait_share

logger = logging.getLogger(__name__)

_PLAIN_INTERVAL_S = 5.0
_POLL_S = 0.5
_CONSOLE = Console(stderr=True)


class StageProgress:
    """A progress bar in a terminal, a line every few seconds in a log."""

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self._stage, self._total, self._unit = stage, total, unit
        self._done = 0
        self._said = 0.0
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if _CONSOLE.is_terminal:
            self._bar = Progress(
                TextColumn(f"{self._stage:<18}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=_CONSOLE,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._stage, total=self._total, note="")
        else:
            print(f"{self._stage}: starting", file=sys.stderr, flush=True)
        return self

    def set(self, done: int, note: str = "", total: int | None = None) -> None:
        """Show that `done` units of work are finished."""
        self._done, self._total = done, total or self._total
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self._total, note=note)
        elif time.monotonic() - self._said > _PLAIN_INTERVAL_S or done == self._total:
            self._said = time.monotonic()
            print(f"{self._stage}: {done}/{self._total} {self._unit} {note}", file=sys.stderr, flush=True)

    def advance(self, count: int, note: str = "") -> None:
        """Show that `count` more units are finished."""
        self.set(self._done + count, note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


STARTED = time.time()
"""When this job began; what run.must_save_by counts from."""


@contextmanager
def follow_training(stage: str, config: Config) -> Iterator[dict[str, Any]]:
    """Around a training: show its progress, and let SIGTERM and run.must_save_by end it with everything saved.

    Yields:
        What ranks must be told for that: keyword arguments of `RankJob`.
    """
    from actors.ranks.notes import ControlNotes
    from actors.ranks.stopping import stop_on_sigterm

    stop, notes = threading.Event(), ControlNotes()
    with StageProgress(stage, 0, "updates") as progress, stop_on_sigterm(notes):
        readers = (_progress_reader(partial(notes.read, "progress"), progress), _warner(partial(notes.read, "told")))

        def show() -> None:
            for read in readers:
                read()

        def poll() -> None:
            while not stop.wait(_POLL_S):
                show()

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield {"notes": notes, "must_save_by": config.run.deadline(STARTED)}
        finally:
            stop.set()
            thread.join()
            show()
            notes.remove()


def _progress_reader(read: Callable[[], dict[str, float] | None], progress: StageProgress) -> Callable[[], None]:
    seen = -1

    def show() -> None:
        nonlocal seen
        last = read()
        if last is None or last["update"] == seen:
            return
        seen = int(last["update"])
        note = f"loss {last['loss']:.4f}  {last['time/update_s']:.2f} s/update"
        if waited := wait_share([last]):
            note += f"  waiting {100 * waited:.0f}%"
        progress.set(seen + 1, note, total=int(last["num_updates"]))

    return show


def _warner(read: Callable[[], list[str] | None]) -> Callable[[], None]:
    said: set[str] = set()

    def show() -> None:
        for text in read() or []:
            if text not in said:
                said.add(text)
                logger.warning(text)
                _CONSOLE.print(text, highlight=False, markup=False, soft_wrap=True)

    return show
