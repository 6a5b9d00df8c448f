"""Many items and replies -> their grades, in processes that may be killed. Knows no rules of grading.

What models write may keep SymPy busy for years or fill the memory. A process that exceeds its time is killed, one that
exceeds its memory fails or dies; another takes its place, and the reply gets a verdict that says so.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from types import TracebackType
from typing import Generic

from pebble import ProcessExpired, ProcessPool

from vcrd_ray.grading.protocol import Grade, Grader, Item, Pending, Verdict

_PRELOADED = ("sympy", "sympy.parsing.latex._parse_latex_antlr", "latex2sympy2_extended", "math_verify", __name__)

_PATIENCE = 10
"""Wall-clock time that an answer gets, in multiples of its processor time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolLimits:
    """What grading may cost."""

    workers: int
    timeout_s: float = 3.0
    """For one answer: time of the processor, so that a loaded machine decides as an idle one. The published evaluation's."""
    memory_mib: int = 2048
    """That one worker may take beyond what it needs to start."""

    def __post_init__(self) -> None:
        for name in ("workers", "timeout_s", "memory_mib"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; make it positive")


class GradingPool(Generic[Item]):
    """Grades with one grader. Processes start when the first reply needs one, and stay until the pool is left.

    They import the program's main module, which keeps its entry point under `if __name__ == "__main__"`.
    """

    def __init__(self, grader: Grader[Item], limits: PoolLimits) -> None:
        self._grader = grader
        self._limits = limits
        self._processes: ProcessPool | None = None
        self._decided: dict[Pending[Item], Grade] = {}

    def __enter__(self) -> GradingPool[Item]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._processes is not None:
            # All results are in, or nobody waits for them any more.
            self._processes.stop()  # type: ignore[no-untyped-call]
            self._processes.join()
            self._processes = None

    def grade(self, pairs: Iterable[tuple[Item, str]]) -> list[Grade]:
        """A grade for each pair, in their order. Equal answers to one gold are decided once."""
        settled = [self._grader.settle(item, reply) for item, reply in pairs]
        pending = {found: None for found in settled if isinstance(found, Pending) and found not in self._decided}
        futures = {found: self._submit(found) for found in pending}
        for found, future in futures.items():
            self._decided[found] = _result(future)
        return [self._decided[found] if isinstance(found, Pending) else found for found in settled]

    def _submit(self, pending: Pending[Item]) -> Future[Grade]:
        if self._processes is None:
            self._processes = ProcessPool(
                max_workers=self._limits.workers,
                initializer=_prepare,
                initargs=(self._grader, self._limits.memory_mib),
                context=_context(),
            )
        timeout_s = self._limits.timeout_s
        future: Future[Grade] = self._processes.schedule(
            _decide, args=[self._grader, pending, timeout_s], timeout=_PATIENCE * timeout_s
        )
        return future


def _context() -> BaseContext:
    """Processes are forked from one that has loaded the parsers and nothing else: at once, and without the program's locks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    return context


def _result(future: Future[Grade]) -> Grade:
    try:
        return future.result()
    except TimeoutError:
        return Grade(verdict=Verdict.TIMEOUT, prediction=None)
    except ProcessExpired as death:
        overtime = death.exitcode == -signal.SIGPROF
        return Grade(verdict=Verdict.TIMEOUT if overtime else Verdict.CRASHED, prediction=None)
    except (MemoryError, RecursionError):
        return Grade(verdict=Verdict.CRASHED, prediction=None)


def _decide(grader: Grader[Item], pending: Pending[Item], timeout_s: float) -> Grade:
    # Nothing handles the signal, so it kills: Python's own handlers run between two of its instructions, and one power of
    # two numbers may take a day.
    signal.setitimer(signal.ITIMER_PROF, timeout_s)
    try:
        return grader.decide(pending)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _prepare(grader: Grader[Item], memory_mib: int) -> None:
    """In a new worker: load what grading needs, then take the limits on."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    grader.warm_up()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + (memory_mib << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
