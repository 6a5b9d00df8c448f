"""One process's way to ask a pool: submit, ask whether it is done, wait for the answer. Knows no Ray.

Single-threaded: what has happened is noticed whenever the pool is asked for something.
"""

from __future__ import annotations

from typing import Any

from actors.pools.dispatch import Dispatcher
from actors.pools.requests import Request, Transport
from vcrd_ray.errors import ScheduleError
from vcrd_ray.training.telemetry import JudgeTraffic


class PoolClient:
    """Requests of one process to a pool of replicas."""

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
            max_crashes: a request that so many replicas died of is quarantined; None: it is sent again and again.
            cure: what to do, beside raising the limit, when answers do not come in time.
        """
        self._transport, self._role, self._cure = transport, role, cure
        self._dispatcher = Dispatcher(transport, role=role, num_replicas=num_replicas, max_crashes=max_crashes)

    @property
    def in_flight(self) -> int:
        """Requests that are neither answered nor quarantined, as far as is known."""
        return self._dispatcher.in_flight

    @property
    def num_quarantined(self) -> int:
        """Requests that nobody could answer."""
        return self._dispatcher.num_quarantined

    def take_traffic(self) -> JudgeTraffic:
        """What happened since the last call."""
        return self._dispatcher.take_traffic()

    def submit(self, request: Request) -> Request:
        """Send a request; does not wait.

        Raises:
            ScheduleError: no replica is left.
        """
        self._dispatcher.advance(0.0)
        self._dispatcher.submit(request)
        return request

    def result(self, request: Request, *, timeout_s: float) -> Any:
        """Wait for an answer; None where the request was quarantined. Every call gives the same.

        Raises:
            ScheduleError: it did not come in time, or no replica is left.
            Exception: what the replica raised.
        """
        deadline = self._transport.now() + timeout_s
        while not request.done:
            left = deadline - self._transport.now()
            if left <= 0:
                raise ScheduleError(
                    f"no answer from the {self._role} pool after {timeout_s:g} s (request {request.id}); {self._cure},"
                    " or raise cluster.request_timeout_s"
                )
            self._dispatcher.advance(left)
        if request.error is not None:
            raise request.error
        return request.answer

    def is_done(self, request: Request) -> bool:
        """Whether `result` would come at once."""
        self._dispatcher.advance(0.0)
        return request.done

    def part(self, request: Request, index: int) -> Any:
        """One of a request's results, to be sent on: itself or a reference to it; None while nobody makes it.

        Raises:
            Exception: what the replica raised.
        """
        self._dispatcher.advance(0.0)
        if request.done:
            if request.error is not None:
                raise request.error
            return request.answer[index]
        ticket = self._dispatcher.ticket_of(request)
        return None if ticket is None else self._transport.part(ticket, index)
