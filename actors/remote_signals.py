"""The update loop's signals and new responses through actor pools. References travel, payloads do not."""

from __future__ import annotations

from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError

from actors.judge_pool import JudgeClient, Request
from actors.judge_transport import RayTransport
from actors.pools import Pool
from vcrd_ray.analysis.telemetry import JudgeTraffic
from vcrd_ray.errors import JudgeError, ScheduleError, VcrdError
from vcrd_ray.refresh.orders import Answers, ResponseOrder, VersionRef, Written
from vcrd_ray.signals import Pending, Ready
from vcrd_ray.types import IntArray, JudgeScores, PairBatch, Prompt, Rollout, Side, TeacherRequest, TeacherSignals

_MORE_WRITERS = " add rollouts.refresh.replicas,"


class _RemoteScores:
    """A judge's answer, or that there is none."""

    def __init__(
        self,
        client: JudgeClient,
        request: Request,
        *,
        batch: Pending[PairBatch],
        side: Side,
        timeout_s: float,
        max_set_aside: int,
    ) -> None:
        self._client = client
        self._max_set_aside = max_set_aside
        self._request = request
        self._batch = batch
        self._side: Side = side
        self._timeout_s = timeout_s

    def result(self) -> JudgeScores:
        """See `Pending`."""
        answer = self._client.result(self._request, timeout_s=self._timeout_s)
        if self._request.set_aside:
            if self._client.num_set_aside > self._max_set_aside:
                raise JudgeError(
                    f"judge processes died of {self._client.num_set_aside} requests, more than judge.max_set_aside"
                    f" {self._max_set_aside}, the last {self._request.id}: look at the judge's log; lower"
                    " judge.max_batch_tokens if it ran out of memory"
                )
            rows = self._batch.result().rows.side_rows(self._side)
            return JudgeScores.nothing(rows.stop - rows.start, set_aside=True)
        return cast(JudgeScores, answer)


class _RemoteTeacher:
    """A teacher's answer, and the reference to its proposals for the judge."""

    def __init__(self, refs: list[Any], timeout_s: float) -> None:
        self._signals, self.proposals = refs
        self._timeout_s = timeout_s

    def result(self) -> TeacherSignals:
        """See `Pending`."""
        return cast(TeacherSignals, _get(self._signals, "teacher", self._timeout_s))


def _get(ref: Any, pool: str, timeout_s: float, cure: str = "") -> Any:
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        raise ScheduleError(
            f"no answer from the {pool} pool after {timeout_s:g} s; look at its log,{cure} or raise cluster.request_timeout_s"
        ) from None
    except RayTaskError as error:
        # What an actor raised on purpose, without the traceback that Ray puts before its message.
        raise error.cause if isinstance(error.cause, VcrdError) else error from None
    except ActorDiedError as error:
        raise ScheduleError(f"the {pool} pool is gone for good: {error}") from error


class RemoteBatch:
    """A micro-batch whose responses are being written."""

    def __init__(self, ref: Any, asked: PairBatch, timeout_s: float) -> None:
        self.ref = ref
        self.asked = asked
        """The same with the responses that were there before."""
        self._timeout_s = timeout_s

    def result(self) -> PairBatch:
        """See `Pending`."""
        return cast(PairBatch, _get(self.ref, "rollout", self._timeout_s, _MORE_WRITERS))


class _RemoteWritten:
    """What an order took."""

    def __init__(self, ref: Any, timeout_s: float) -> None:
        self._ref = ref
        self._timeout_s = timeout_s

    def result(self) -> Written:
        """See `Pending`."""
        return cast(Written, _get(self._ref, "rollout", self._timeout_s, _MORE_WRITERS))


class _RemoteAnswers:
    """Answers of a version."""

    def __init__(self, ref: Any, timeout_s: float) -> None:
        self._ref = ref
        self._timeout_s = timeout_s

    def ready(self) -> bool:
        """See `Answers`."""
        return bool(ray.wait([self._ref], timeout=0)[0])

    def result(self) -> list[Rollout]:
        """See `Pending`."""
        return cast(list[Rollout], _get(self._ref, "rollout", self._timeout_s, _MORE_WRITERS))


class RemoteResponses:
    """`ResponseSource` and `AnswerSource` through a pool."""

    def __init__(self, pool: Pool, *, timeout_s: float) -> None:
        self._pool = pool
        self._timeout_s = timeout_s

    def order(self, order: ResponseOrder) -> tuple[list[Pending[PairBatch]], Pending[Written]]:
        """See `ResponseSource`."""
        *refs, written = self._pool.pick().write.options(num_returns=len(order.batches) + 1).remote(order)
        batches = [RemoteBatch(ref, asked, self._timeout_s) for ref, asked in zip(refs, order.batches, strict=True)]
        return list(batches), _RemoteWritten(written, self._timeout_s)

    def answer(self, version: VersionRef, prompts: tuple[Prompt, ...]) -> Answers:
        """See `AnswerSource`."""
        return _RemoteAnswers(self._pool.pick().answer.remote(version, prompts), self._timeout_s)


class RemoteSignals:
    """`SignalSource` through actor pools."""

    def __init__(
        self,
        *,
        teacher: Pool | None,
        judge: Pool | None,
        request: TeacherRequest,
        timeout_s: float,
        rank: int,
        max_crashes: int,
        max_set_aside: int,
    ) -> None:
        """`rank` makes this process's requests known by name; for the last two see the judge's section."""
        self._max_set_aside = max_set_aside
        self._teacher = teacher
        self._request = request
        self._judge = (
            None
            if judge is None
            else JudgeClient(RayTransport(judge.replicas), num_replicas=len(judge.replicas), max_crashes=max_crashes)
        )
        self._timeout_s = timeout_s
        self._rank = rank

    def take_judge_traffic(self) -> JudgeTraffic:
        """What happened to judge requests since the last call."""
        return JudgeTraffic() if self._judge is None else self._judge.take_traffic()

    def request_teacher(self, batch: Pending[PairBatch]) -> Pending[TeacherSignals]:
        """See `SignalSource`."""
        assert self._teacher is not None
        refs = self._teacher.pick().annotate.options(num_returns=2).remote(_reference(batch), self._request)
        return _RemoteTeacher(refs, self._timeout_s)

    def request_student_prefix_scores(
        self, batch: Pending[PairBatch], teacher: Pending[TeacherSignals]
    ) -> Pending[JudgeScores]:
        """See `SignalSource`. The proposals go from the teacher's node to the judge's, not through here."""
        assert isinstance(teacher, _RemoteTeacher)
        return self._score(batch, "student", teacher.proposals)

    def request_teacher_prefix_scores(self, batch: PairBatch, proposals: IntArray) -> Pending[JudgeScores]:
        """See `SignalSource`."""
        return self._score(Ready(batch), "teacher", proposals)

    def self_check(self, batch: PairBatch, side: Side, candidates: IntArray) -> float:
        """See `SignalSource`."""
        assert self._judge is not None
        request = self._ask("self_check", Ready(batch), side, candidates)
        difference = self._judge.result(request, timeout_s=self._timeout_s)
        if request.set_aside:
            raise JudgeError(
                f"judge processes died of the self-check (request {request.id}) {request.crashes} times; look at their log"
            )
        return float(difference)

    def _score(self, batch: Pending[PairBatch], side: Side, candidates: Any) -> Pending[JudgeScores]:
        assert self._judge is not None
        request = self._ask("score", batch, side, candidates)
        return _RemoteScores(
            self._judge,
            request,
            batch=batch,
            side=side,
            timeout_s=self._timeout_s,
            max_set_aside=self._max_set_aside,
        )

    def _ask(self, method: str, batch: Pending[PairBatch], side: Side, candidates: Any) -> Request:
        assert self._judge is not None
        asked = batch.asked if isinstance(batch, RemoteBatch) else batch.result()
        name = f"update {asked.update} micro {asked.micro} rank {self._rank} {side} {method}"
        return self._judge.submit(Request(id=name, method=method, args=(_reference(batch), side, candidates)))


def _reference(batch: Pending[PairBatch]) -> Any:
    """What another actor is sent: a batch that is still being written goes to it from its writer, not through here."""
    return batch.ref if isinstance(batch, RemoteBatch) else batch.result()
