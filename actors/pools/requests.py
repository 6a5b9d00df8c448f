"""What is said between a client of a pool and what carries its requests. Knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vcrd_ray.errors import ScheduleError

Ticket = Any  # hashable
"""What a transport gives for something sent."""


class ReplicaDownError(Exception):
    """A replica died or cannot be reached before it answered."""


class ReplicaGoneError(ReplicaDownError):
    """The same, and it will not be started again."""


class AnswerLostError(Exception):
    """There is no answer, and not by the replica's fault: it, or an argument on its way, was lost with its node."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """How a replica knows one sending of a request."""

    id: str
    """Unique to the client, the request and the sending."""
    alone: bool
    """Share no pass with other requests: it may have killed a replica before."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """An argument: a result of a request to another pool. Where that is sent again, so is what waits for it."""

    current: Callable[[], Any]
    """See `PoolClient.part`."""


@dataclass(kw_only=True, eq=False)
class Request:
    """One question, until it is answered or quarantined."""

    id: str
    """Unique in the run."""
    method: str
    args: tuple[Any, ...] | None
    """References rather than payloads, `Part`s of other pools' answers among them; None once it is finished."""
    num_results: int = 1
    """More than 1: the answer is a list of as many."""
    order: int = 0
    """When it was submitted, counted from 0."""
    sendings: int = 0
    crashes: int = 0
    """Replicas that died while working on it."""
    done: bool = False
    quarantined: bool = False
    answer: Any = None
    error: BaseException | None = None

    def finish(self, *, answer: Any = None, error: BaseException | None = None, quarantined: bool = False) -> None:
        """Settle it and let go of its arguments."""
        self.answer, self.error, self.quarantined = answer, error, quarantined
        self.done, self.args = True, None

    def current_args(self) -> list[Any] | None:
        """Its arguments as they are to be sent; None while one is not being made, or where it failed."""
        assert self.args is not None
        found: list[Any] = []
        for arg in self.args:
            if isinstance(arg, Part):
                try:
                    arg = arg.current()
                except ScheduleError:
                    raise
                except Exception as error:
                    self.finish(error=error)
                    return None
                if arg is None:
                    return None
            found.append(arg)
        return found


class Transport(Protocol):
    """How requests travel. Replicas are numbered from 0; only `wait` blocks."""

    def send(self, replica: int, request: Request, args: Sequence[Any], tag: Tag) -> Ticket:
        """Hand a request over, with its arguments as they are now."""

    def probe(self, replica: int) -> Ticket:
        """Ask whether a replica is ready."""

    def wait(self, tickets: Sequence[Ticket], timeout_s: float) -> list[Ticket]:
        """All tickets that are settled, once there is one or the time is over. Sleeps where there are no tickets."""

    def answer(self, ticket: Ticket) -> Any:
        """The answer of a settled ticket.

        Raises:
            ReplicaDownError: the replica died or could not be reached.
            ReplicaGoneError: and it does not come back.
            AnswerLostError: it has to be asked for again.
            Exception: whatever the replica raised.
        """

    def part(self, ticket: Ticket, index: int) -> Any:
        """A reference to one of the results of a request that is with a replica."""

    def was_running(self, tag: Tag) -> bool:
        """Whether the dead replica had begun a sending and not ended it."""

    def forget(self, ticket: Ticket) -> None:
        """Nobody waits for this ticket any more."""

    def now(self) -> float:
        """Seconds on a clock that only goes forward."""
