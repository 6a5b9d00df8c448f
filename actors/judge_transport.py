"""How requests travel to judge actors, and how it is known afterwards what a dead one was working on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ObjectLostError, RayActorError
from ray.experimental import internal_kv

from actors.judge_pool import AnswerLostError, ReplicaDownError, ReplicaGoneError, Request, Tag


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


class RayTransport:
    """`Transport` to a pool of judge actors."""

    def __init__(self, replicas: Sequence[Any]) -> None:
        self._replicas = replicas
        self._actor_ids = {replica._actor_id.hex() for replica in replicas}

    def send(self, replica: int, request: Request, tag: Tag) -> Any:
        """See `Transport`."""
        assert request.args is not None
        return getattr(self._replicas[replica], request.method).remote(*request.args, tag)

    def probe(self, replica: int) -> Any:
        """See `Transport`."""
        return self._replicas[replica].ready.remote()

    def wait(self, tickets: Sequence[Any], timeout_s: float) -> list[Any]:
        """See `Transport`."""
        if not tickets:
            time.sleep(timeout_s)
            return []
        first, rest = ray.wait(list(tickets), num_returns=1, timeout=timeout_s)
        # What else is there costs nothing to know, and answers must be seen before a death is.
        more = ray.wait(rest, num_returns=len(rest), timeout=0)[0] if first and rest else []
        return [*first, *more]

    def answer(self, ticket: Any) -> Any:
        """See `Transport`."""
        try:
            return ray.get(ticket)
        except ObjectLostError as error:
            raise AnswerLostError(str(error)) from error
        except RayActorError as error:
            if error.actor_id is not None and error.actor_id not in self._actor_ids:
                raise  # a teacher or rollout actor, whose answer the request was to judge
            raise (ReplicaGoneError if isinstance(error, ActorDiedError) else ReplicaDownError)(str(error)) from error

    def was_running(self, tag: Tag) -> bool:
        """See `Transport`."""
        return bool(internal_kv._internal_kv_del(_mark(tag)))

    def forget(self, ticket: Any) -> None:
        """See `Transport`. It may still wait for its arguments, and would run later, unasked for."""
        ray.cancel(ticket)

    def now(self) -> float:
        """See `Transport`."""
        return time.monotonic()
