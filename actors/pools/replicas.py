"""A pool's replicas as one client knows them: which of them can be asked, and what each was sent. Knows no Ray.

A replica is UP, DOWN (not there yet, or it died; Ray is starting it) or GONE (it will not come back).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import Enum

from actors.pools.requests import AnswerLostError, ReplicaDownError, ReplicaGoneError, Request, Tag, Ticket, Transport
from vcrd_ray.errors import ScheduleError

logger = logging.getLogger(__name__)

PROBE_PAUSE_S = 0.2
"""Between two questions whether a replica is back, or whether an argument is being made again."""


class State(Enum):
    UP = "up"
    DOWN = "down"
    GONE = "gone"


@dataclass(kw_only=True, eq=False)
class Replica:
    index: int
    state: State = State.DOWN
    sent: dict[Ticket, tuple[Request, Tag]] = field(default_factory=dict)
    """Unfinished requests, in the order of sending. Empty unless UP."""
    probe: Ticket | None = None
    probe_at: float = 0.0
    """When to ask again, where no probe is out."""


class Replicas:
    """All that there are or will be.

    Nobody is asked anything before it has said that it is ready, to this client: what is sent to an actor whose death
    this process has not heard of yet would wait for its restart, however long that takes.
    """

    def __init__(self, transport: Transport, *, role: str, count: int) -> None:
        self._transport, self._role = transport, role
        self._all = [Replica(index=i, probe=transport.probe(i)) for i in range(count)]
        self._turn = 0
        self._why_gone: ReplicaGoneError | None = None

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._all)

    def up(self) -> list[Replica]:
        """Those that can be asked."""
        return [r for r in self._all if r.state is State.UP]

    def next_up(self) -> Replica:
        """The one of them with the fewest unfinished requests, in turn where several have so many."""
        replica = min(self.up(), key=lambda r: (len(r.sent), (r.index - self._turn) % len(self._all)))
        self._turn = replica.index + 1
        return replica

    def refuse_all_gone(self) -> None:
        """Raise a ScheduleError if no replica is left."""
        if all(r.state is State.GONE for r in self._all):
            raise ScheduleError(f"the {self._role} pool is gone for good: {self._why_gone}") from self._why_gone

    def tickets(self) -> list[Ticket]:
        """Everything that is waited for: requests and probes."""
        return [ticket for r in self._all for ticket in [*r.sent, *([r.probe] if r.probe is not None else [])]]

    def ticket_of(self, request: Request) -> Ticket | None:
        """Of a request that is with a replica; None: it is with none."""
        return next((t for r in self._all for t, (other, _) in r.sent.items() if other is request), None)

    def probe_again(self) -> bool:
        """Ask those that are down and whose time it is; whether there were any without a probe out."""
        unasked = [r for r in self._all if r.state is State.DOWN and r.probe is None]
        for replica in unasked:
            if self._transport.now() >= replica.probe_at:
                replica.probe = self._transport.probe(replica.index)
        return bool(unasked)

    def take_probes(self, settled: Collection[Ticket]) -> None:
        """Learn who is up and who is gone."""
        for replica in self._all:
            if replica.probe in settled:
                self._take_probe(replica)

    def _take_probe(self, replica: Replica) -> None:
        probe, replica.probe = replica.probe, None
        try:
            self._transport.answer(probe)
        except ReplicaGoneError as error:
            replica.state = State.GONE
            logger.warning("%s replica %d is gone for good: %s", self._role, replica.index, error)
            self._why_gone = error
        except (ReplicaDownError, AnswerLostError):
            replica.probe_at = self._transport.now() + PROBE_PAUSE_S
        else:
            replica.state = State.UP

    def mark_down(self, replica: Replica) -> None:
        """It died: ask at once whether it is back."""
        replica.state, replica.probe_at = State.DOWN, self._transport.now()
