"""The order of teacher requests, forwards, judge requests, backwards and optimizer steps. Pure: no torch, no Ray.

Overlapped, within one accumulation window of three micro-batches (F forward, J judge request, B backward):

    F0 J0  F1 J1 B0  F2 J2 B1  B2 STEP

B waits for the judge's answer on its own micro-batch, which was asked for one forward earlier. Serially:

    F0 J0 B0  F1 J1 B1  F2 J2 B2 STEP

Invariants, for both: forwards happen in order and so do backwards, hence random numbers are drawn and gradients are
summed in the same order and the results are equal bit for bit; no forward of an update precedes the STEP of the one
before, hence no graph outlives its weights; every request precedes the wait for it; nothing is asked of an update before
the updates that its responses need are done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What the loop does next."""

    REQUEST_TEACHER = "request_teacher"
    """Ask for a micro-batch's teacher signals (and for the scores that depend on them alone); do not wait."""
    FORWARD = "forward"
    """Wait for the teacher's signals, run the student, compute divergences, ask the judge; do not wait for the judge."""
    BACKWARD = "backward"
    """Wait for the judge, weight the tokens, backpropagate."""
    STEP = "step"
    """Optimizer update."""


@dataclass(frozen=True, slots=True)
class Op:
    """One action on one micro-batch; `micro` is 0 for STEP."""

    action: Action
    update: int
    micro: int


def plan(
    *,
    first_update: int,
    num_updates: int,
    num_micro: int,
    overlap: bool,
    prefetch: int,
    needs: Callable[[int], int] = lambda update: 0,
) -> Iterator[Op]:
    """All operations of a run over updates [first_update, num_updates).

    Args:
        num_micro: micro-batches of one update on this rank.
        overlap: judge one micro-batch while the next goes forward.
        prefetch: teacher requests in flight ahead of the forward, across updates; without overlap there are none ahead.
        needs: how many updates must be done before anything of an update can be asked for, never more than all before it.
    """
    micros = [(u, m) for u in range(first_update, num_updates) for m in range(num_micro)]
    ahead = prefetch if overlap else 0
    requested = 0
    for index, (update, micro) in enumerate(micros):
        while requested < min(len(micros), index + ahead + 1) and needs(micros[requested][0]) <= update:
            yield Op(Action.REQUEST_TEACHER, *micros[requested])
            requested += 1
        yield Op(Action.FORWARD, update, micro)
        if not overlap:
            yield Op(Action.BACKWARD, update, micro)
        elif micro > 0:
            yield Op(Action.BACKWARD, update, micro - 1)
        if micro == num_micro - 1:
            if overlap:
                yield Op(Action.BACKWARD, update, micro)
            yield Op(Action.STEP, update, 0)
