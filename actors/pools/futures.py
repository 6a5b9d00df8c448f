"""Answers of pools that may not be there yet. References travel, payloads do not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from actors.pools.client import PoolClient
from actors.pools.requests import Part, Request
from vcrd_ray.errors import JudgeError
from vcrd_ray.training.signals import Future
from vcrd_ray.types import JudgeScores, PairBatch, Side

T = TypeVar("T")


class RemoteFuture(Future[T]):
    """An answer of a pool, or one of the parts of an answer."""

    def __init__(
        self,
        client: PoolClient,
        request: Request,
        timeout_s: float,
        *,
        index: int | None = None,
        read: Callable[[Any], T] = lambda answer: answer,
    ) -> None:
        """
        Args:
            index: of the part; None: the whole answer.
            read: what was answered -> what is given.
        """
        self._client, self._request, self._timeout_s = client, request, timeout_s
        self._index, self._read = index, read

    def part(self, index: int) -> Part:
        """A part of the answer, that another pool can be sent before it is there."""
        return Part(current=partial(self._client.part, self._request, index))

    def ready(self) -> bool:
        """Whether `result` would come at once."""
        return self._client.is_done(self._request)

    def result(self) -> T:
        answer = self._client.result(self._request, timeout_s=self._timeout_s)
        return self._read(answer if self._index is None else answer[self._index])


class RemoteBatch(RemoteFuture[PairBatch]):
    """A micro-batch whose responses are being written."""

    def __init__(self, client: PoolClient, request: Request, timeout_s: float, *, index: int, asked: PairBatch) -> None:
        super().__init__(client, request, timeout_s, index=index)
        self.asked = asked
        """The same with the responses that there were before."""
        self.sent = self.part(index)
        """What another pool is sent in its place."""


def remote_scores(
    client: PoolClient,
    request: Request,
    *,
    batch: Future[PairBatch],
    side: Side,
    timeout_s: float,
    max_quarantined: int,
) -> Future[JudgeScores]:
    """A judge's answer, or that nobody could judge: such scores are quarantined.

    Raises (when waited for):
        JudgeError: judges died of more requests than `max_quarantined`.
    """

    def read(answer: Any) -> JudgeScores:
        if not request.quarantined:
            return cast(JudgeScores, answer)
        if client.num_quarantined > max_quarantined:
            raise JudgeError(
                f"judge processes died of {client.num_quarantined} requests, more than judge.max_set_aside"
                f" {max_quarantined}, the last {request.id}: look at the judge's log; lower"
                " judge.max_batch_tokens if it ran out of memory"
            )
        span = batch.result().layout.span(side)
        return JudgeScores.nothing(span.stop - span.start, quarantined=True)

    return RemoteFuture(client, request, timeout_s, read=read)
