"""What is sent to which replica, what is sent again, what is quarantined. Knows no Ray.

Invariant: every unfinished request is either with one UP replica or in `unsent`, in the order in which it was first
submitted. Requests are stateless, so sending one again gives the same answer, and which replica answers changes
nothing.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from actors.pools.replicas import PROBE_PAUSE_S, Replica, Replicas
from actors.pools.requests import AnswerLostError, ReplicaDownError, Request, Tag, Ticket, Transport
from vcrd_ray.training.telemetry import JudgeTraffic

logger = logging.getLogger(__name__)


class Dispatcher:
    """The unfinished requests of one client.

    When a replica dies, its unfinished requests are sent to others at once; while there is no other, they wait for its
    restart.
    """

    def __init__(self, transport: Transport, *, role: str, num_replicas: int, max_crashes: int | None) -> None:
        """For the arguments see `PoolClient`."""
        self._transport, self._role = transport, role
        self._replicas = Replicas(transport, role=role, count=num_replicas)
        self._max_crashes = max_crashes
        self._unsent: list[Request] = []
        self._submitted = 0
        # A restarted rank asks the same again: its sendings must not be taken for those of its former life.
        self._client = uuid.uuid4().hex
        self._traffic = JudgeTraffic()
        self.num_quarantined = 0

    @property
    def in_flight(self) -> int:
        """Requests that are neither answered nor quarantined, as far as is known."""
        return len(self._unsent) + sum(len(r.sent) for r in self._replicas)

    def take_traffic(self) -> JudgeTraffic:
        """What happened since the last call."""
        taken, self._traffic = self._traffic, JudgeTraffic(max_in_flight=self.in_flight)
        return taken

    def ticket_of(self, request: Request) -> Ticket | None:
        """Of a request that is with a replica; None: it is with none."""
        return self._replicas.ticket_of(request)

    def submit(self, request: Request) -> None:
        """Take on a request, and send it if it can be."""
        request.order, self._submitted = self._submitted, self._submitted + 1
        self._unsent.append(request)
        self._send_all()
        self._traffic.max_in_flight = max(self._traffic.max_in_flight, self.in_flight)

    def advance(self, timeout_s: float) -> None:
        """Take in what is settled; waits at most this long for something to be."""
        if self._replicas.probe_again():
            timeout_s = min(timeout_s, PROBE_PAUSE_S)
        if self._unsent and self._replicas.up():
            timeout_s = min(timeout_s, PROBE_PAUSE_S)  # an argument is not being made: its pool is to be asked again
        settled = set(self._transport.wait(self._replicas.tickets(), timeout_s))
        # Answers first: a request that was answered before its replica died is no reason of the death.
        failed = [self._take_answers(replica, settled) for replica in self._replicas]
        for replica, error in zip(self._replicas, failed, strict=True):
            if error is not None:
                self._bury(replica, error)
        self._replicas.take_probes(settled)
        self._send_all()

    def _take_answers(self, replica: Replica, settled: Collection[Ticket]) -> ReplicaDownError | None:
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
                self._put_back([request])
            except Exception as error:
                request.finish(error=error)
            del replica.sent[ticket]
        return failure

    def _bury(self, replica: Replica, error: ReplicaDownError) -> None:
        """Count a crash for what was being worked on, and make everything unfinished ready to be sent again."""
        logger.warning("%s replica %d died with %d requests: %s", self._role, replica.index, len(replica.sent), error)
        self._replicas.mark_down(replica)
        self._traffic.replica_deaths += 1
        orphans: list[Request] = []
        for ticket, (request, tag) in replica.sent.items():
            self._transport.forget(ticket)
            request.crashes += self._transport.was_running(tag)
            if self._max_crashes is not None and request.crashes >= self._max_crashes:
                logger.warning("request %s is quarantined: %d replicas died of it", request.id, request.crashes)
                request.finish(quarantined=True)
                self.num_quarantined += 1
            else:
                orphans.append(request)
        replica.sent.clear()
        self._put_back(orphans)

    def _put_back(self, requests: Sequence[Request]) -> None:
        self._traffic.retries += len(requests)
        self._unsent = sorted([*self._unsent, *requests], key=lambda r: r.order)

    def _send_all(self) -> None:
        self._replicas.refuse_all_gone()
        if not self._replicas.up():
            return
        waiting: list[Request] = []
        for request in self._unsent:
            args = request.current_args()
            if args is not None:
                self._send(request, args)
            elif not request.done:
                waiting.append(request)
        self._unsent = waiting

    def _send(self, request: Request, args: Sequence[Any]) -> None:
        replica = self._replicas.next_up()
        tag = Tag(id=f"{self._client}/{request.id}/{request.sendings}", alone=request.crashes > 0)
        request.sendings += 1
        replica.sent[self._transport.send(replica.index, request, args, tag)] = (request, tag)
