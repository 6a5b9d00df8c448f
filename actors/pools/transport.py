"""How requests travel to actors, and how it is known afterwards what a dead judge was working on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, ObjectLostError, RayActorError, RayTaskError
from ray.experimental import internal_kv

from actors.pools.requests import AnswerLostError, ReplicaDownError, ReplicaGoneError, Request, Tag, Transport
from vcrd_ray.errors import VcrdError

_FETCH_S = 60
"""Longest wait for the parts of an answer whose first part is here: their node may have gone since."""

_Ticket = tuple[Any, ...]
"""References to the results of a call."""


@contextmanager
def mark_running(tag: Tag) -> Iterator[None]:
    """Note in the cluster's store that a judge works on a request. The note outlives the process."""
    internal_kv._internal_kv_put(_mark(tag), b"running")
    try:
        yield
    finally:
        internal_kv._internal_kv_del(_mark(tag))


def _mark(tag: Tag) -> bytes:
    return f"vcrd_ray/judge/{tag.id}".encode()


class RayTransport(Transport):
    """`Transport` to a pool of actors."""

    def __init__(self, replicas: Sequence[Any], *, marked: bool) -> None:
        """`marked`: the actors take a tag behind the arguments, and note under it what they work on."""
        self._replicas = replicas
        self._marked = marked
        self._actor_ids = {replica._actor_id.hex() for replica in replicas}

    def send(self, replica: int, request: Request, args: Sequence[Any], tag: Tag) -> _Ticket:
        method = getattr(self._replicas[replica], request.method).options(num_returns=request.num_results)
        refs = method.remote(*args, tag) if self._marked else method.remote(*args)
        return (refs,) if request.num_results == 1 else tuple(refs)

    def probe(self, replica: int) -> _Ticket:
        return (self._replicas[replica].ready.remote(),)

    def wait(self, tickets: Sequence[_Ticket], timeout_s: float) -> list[_Ticket]:
        if not tickets:
            time.sleep(timeout_s)
            return []
        by_ref = {ticket[0]: ticket for ticket in tickets}
        first, rest = ray.wait(list(by_ref), num_returns=1, timeout=timeout_s)
        # What else is there costs nothing to know, and answers must be seen before a death is.
        more = ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else []
        return [by_ref[ref] for ref in [*first, *more]]

    def answer(self, ticket: _Ticket) -> Any:
        try:
            found = ray.get(list(ticket), timeout=_FETCH_S)
        except (ObjectLostError, GetTimeoutError) as error:
            raise AnswerLostError(str(error)) from error
        except RayActorError as error:
            if error.actor_id is not None and error.actor_id not in self._actor_ids:
                # An actor of another pool, whose answer was an argument.
                raise AnswerLostError(str(error)) from error
            raise (ReplicaGoneError if isinstance(error, ActorDiedError) else ReplicaDownError)(str(error)) from error
        except RayTaskError as error:
            if isinstance(error.cause, RayActorError | ObjectLostError):
                raise AnswerLostError(str(error.cause)) from error
            # What an actor raised on purpose, without the traceback that Ray puts before its message.
            raise error.cause if isinstance(error.cause, VcrdError) else error from None
        return found[0] if len(ticket) == 1 else found

    def part(self, ticket: _Ticket, index: int) -> Any:
        return ticket[index]

    def was_running(self, tag: Tag) -> bool:
        return self._marked and bool(internal_kv._internal_kv_del(_mark(tag)))

    def forget(self, ticket: _Ticket) -> None:
        """It may still wait for its arguments, and would run later, unasked for."""
        ray.cancel(ticket[0])

    def now(self) -> float:
        return time.monotonic()
