"""One process's requests to a pool of replicas: who is asked, what is sent again, what is set aside. Knows no Ray.

A replica is UP, DOWN (not there yet, or it died; Ray is starting it) or GONE (it will not come back). Invariant: every
unfinished request is either with one UP replica or in `unsent`, in the order in which it was first submitted.

Single-threaded: what has happened is noticed whenever the pool is asked for something. Requests are stateless, so sending
one again gives the same answer, and which replica answers changes nothing.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from actors.pools.requests import AnswerLostError, ReplicaDownError, ReplicaGoneError, Request, Tag, Ticket, Transport
from vcrd_ray.errors import ScheduleError
from vcrd_ray.training.telemetry import JudgeTraffic

logger = logging.getLogger(__name__)

_PROBE_PAUSE_S = 0.2
"""Between two questions whether a replica is back, or whether an argument is being made again."""


class _State(Enum):
    UP = "up"
    DOWN = "down"
    GONE = "gone"


@dataclass(kw_only=True, eq=False)
class _Replica:
    index: int
    state: _State = _State.DOWN
    sent: dict[Ticket, tuple[Request, Tag]] = field(default_factory=dict)
    """Unfinished requests, in the order of sending. Empty unless UP."""
    probe: Ticket | None = None
    probe_at: float = 0.0
    """When to ask again, where no probe is out."""


class PoolClient:
    """Requests of one process to a pool of replicas.

    A request goes to the replica that has the fewest unfinished requests of this client, in turn where several have.
    When a replica dies, its unfinished requests are sent to others at once; while there is no other, they wait for its
    restart. Nobody is asked anything before it has said that it is ready, to this client: what is sent to an actor whose death
    this process has not heard of yet would wait for its restart, however long that takes.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        role: str,
        num_replicas: int,
        max_crashes: int | None = None,
        cure: str = "look at its log",
    ) -> None:
        """Make the client.

        Args:
            transport: to the replicas.
            role: what the pool is called in messages.
            num_replicas: all there are or will be.
            max_crashes: a request that so many replicas died of is set aside; None: it is sent again and again.
            cure: what to do, beside raising the limit, when answers do not come in time.
        """
        self._transport, self._role, self._cure = transport, role, cure
        self._replicas = [_Replica(index=i, probe=transport.probe(i)) for i in range(num_replicas)]
        self._max_crashes = max_crashes
        self._unsent: list[Request] = []
        self._turn = self._submitted = 0
        # A restarted rank asks the same again: its sendings must not be taken for those of its former life.
        self._client = uuid.uuid4().hex
        self._traffic = JudgeTraffic()
        self.num_quarantined = 0
        self._why_gone: ReplicaGoneError | None = None

    @property
    def in_flight(self) -> int:
        """Requests that are neither answered nor set aside, as far as is known."""
        return len(self._unsent) + sum(len(r.sent) for r in self._replicas)

    def take_traffic(self) -> JudgeTraffic:
        """What happened since the last call."""
        taken, self._traffic = self._traffic, JudgeTraffic(max_in_flight=self.in_flight)
        return taken

    def submit(self, request: Request) -> Request:
        """Send a request; does not wait.

        Raises:
            ScheduleError: no replica is left.
        """
        self._advance(0.0)
        request.order, self._submitted = self._submitted, self._submitted + 1
        self._unsent.append(request)
        self._send_all()
        self._traffic.max_in_flight = max(self._traffic.max_in_flight, self.in_flight)
        return request

    def result(self, request: Request, *, timeout_s: float) -> Any:
        """Wait for an answer; None where the request was set aside. Every call gives the same.

        Raises:
            ScheduleError: it did not come in time, or no replica is left.
            Exception: what the replica raised.
        """
        deadline = self._transport.now() + timeout_s
        while not request.done:
            left = deadline - self._transport.now()
            if left <= 0:
                raise ScheduleError(
                    f"no answer from the {self._role} pool after {timeout_s:g} s (request {request.id}); {self._cure}, or"
                    " raise cluster.request_timeout_s"
                )
            self._advance(left)
        if request.error is not None:
            raise request.error
        return request.answer

    def is_done(self, request: Request) -> bool:
        """Whether `result` would come at once."""
        self._advance(0.0)
        return request.done

    def part(self, request: Request, index: int) -> Any:
        """One of a request's results, to be sent on: itself if it is here, else a reference; None while nobody makes it.

        Raises:
            Exception: what the replica raised.
        """
        self._advance(0.0)
        if request.done:
            if request.error is not None:
                raise request.error
            return request.answer[index]
        with_replica = (t for r in self._replicas for t, (other, _) in r.sent.items() if other is request)
        ticket = next(with_replica, None)
        return None if ticket is None else self._transport.part(ticket, index)

    def _advance(self, timeout_s: float) -> None:
        """Take in what is settled; waits at most this long for something to be."""
        for replica in self._replicas:
            if replica.state is _State.DOWN and replica.probe is None:
                if self._transport.now() >= replica.probe_at:
                    replica.probe = self._transport.probe(replica.index)
                timeout_s = min(timeout_s, _PROBE_PAUSE_S)
        if self._unsent and any(r.state is _State.UP for r in self._replicas):
            timeout_s = min(timeout_s, _PROBE_PAUSE_S)  # an argument is not being made: its pool is to be asked again
        tickets = [ticket for r in self._replicas for ticket in [*r.sent, *([r.probe] if r.probe is not None else [])]]
        settled = set(self._transport.wait(tickets, timeout_s))
        # Answers first: a request that was answered before its replica died is no reason of the death.
        failed = [self._take_answers(replica, settled) for replica in self._replicas]
        for replica, error in zip(self._replicas, failed, strict=True):
            if error is not None:
                self._bury(replica, error)
        for replica in self._replicas:
            if replica.probe in settled:
                self._take_probe(replica)
        self._send_all()

    def _take_answers(self, replica: _Replica, settled: set[Ticket]) -> ReplicaDownError | None:
        """Finish what the replica answered; how it failed, if it did."""
        failure: ReplicaDownError | None = None
        for ticket in [t for t in replica.sent if t in settled]:
            request, _ = replica.sent[ticket]
            try:
                request.finish(answer=self._transport.answer(ticket))
            except ReplicaDownError as error:
                failure = error
                continue
            except AnswerLostError as error:
                logger.warning("the answer to request %s is lost, asking again: %s", request.id, error)
                self._traffic.retries += 1
                self._unsent = sorted([*self._unsent, request], key=lambda r: r.order)
            except Exception as error:
                request.finish(error=error)
            del replica.sent[ticket]
        return failure

    def _bury(self, replica: _Replica, error: ReplicaDownError) -> None:
        """Blame who was being worked on, and make everything unfinished ready to be sent again."""
        logger.warning("%s replica %d died with %d requests: %s", self._role, replica.index, len(replica.sent), error)
        replica.state, replica.probe_at = _State.DOWN, self._transport.now()
        self._traffic.replica_deaths += 1
        orphans: list[Request] = []
        for ticket, (request, tag) in replica.sent.items():
            self._transport.forget(ticket)
            request.crashes += self._transport.was_running(tag)
            if self._max_crashes is not None and request.crashes >= self._max_crashes:
                logger.warning("request %s is set aside: %d replicas died of it", request.id, request.crashes)
                request.finish(quarantined=True)
                self.num_quarantined += 1
            else:
                orphans.append(request)
        replica.sent.clear()
        self._traffic.retries += len(orphans)
        self._unsent = sorted([*self._unsent, *orphans], key=lambda r: r.order)

    def _take_probe(self, replica: _Replica) -> None:
        assert replica.probe is not None
        probe, replica.probe = replica.probe, None
        try:
            self._transport.answer(probe)
        except ReplicaGoneError as error:
            replica.state = _State.GONE
            logger.warning("%s replica %d is gone for good: %s", self._role, replica.index, error)
            self._why_gone = error
        except (ReplicaDownError, AnswerLostError):
            replica.probe_at = self._transport.now() + _PROBE_PAUSE_S
        else:
            replica.state = _State.UP

    def _send_all(self) -> None:
        if all(r.state is _State.GONE for r in self._replicas):
            raise ScheduleError(f"the {self._role} pool is gone for good: {self._why_gone}") from self._why_gone
        up = [r for r in self._replicas if r.state is _State.UP]
        waiting: list[Request] = []
        for request in self._unsent if up else []:
            args = _current(request)
            if args is not None:
                self._send(request, args, up)
            elif not request.done:
                waiting.append(request)
        if up:
            self._unsent = waiting

    def _send(self, request: Request, args: Sequence[Any], up: Sequence[_Replica]) -> None:
        count = len(self._replicas)
        replica = min(up, key=lambda r: (len(r.sent), (r.index - self._turn) % count))
        self._turn = replica.index + 1
        tag = Tag(id=f"{self._client}/{request.id}/{request.sendings}", alone=request.crashes > 0)
        request.sendings += 1
        replica.sent[self._transport.send(replica.index, request, args, tag)] = (request, tag)


@dataclass(frozen=True, kw_only=True)
class Part:
    """An argument: one of the results of a request to another pool. Where that is sent again, so is what waits for it."""

    client: PoolClient
    request: Request
    index: int


def _current(request: Request) -> list[Any] | None:
    """A request's arguments as they are to be sent; None while one is not being made, or where it failed."""
    assert request.args is not None
    found: list[Any] = []
    for arg in request.args:
        if isinstance(arg, Part):
            try:
                arg = arg.client.part(arg.request, arg.index)
            except ScheduleError:
                raise
            except Exception as error:
                request.finish(error=error)
                return None
            if arg is None:
                return None
        found.append(arg)
    return found
