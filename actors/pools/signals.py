"""The update loop's signals and new responses through actor pools. References travel, payloads do not."""

from __future__ import annotations

from typing import Any

from actors.pools.futures import RemoteBatch, RemoteFuture, remote_scores
from actors.pools.pool import Pool
from actors.pools.requests import Request
from vcrd_ray.errors import JudgeError
from vcrd_ray.training.on_policy.requests import (
    Answers,
    AnswerSource,
    PolicyVersion,
    ResponseRequest,
    ResponseSource,
    Written,
)
from vcrd_ray.training.signals import Future, SignalSource, done
from vcrd_ray.training.telemetry import JudgeTraffic
from vcrd_ray.types import IntArray, JudgeScores, PairBatch, Prompt, Side, TeacherRequest, TeacherSignals


class RemoteResponses(ResponseSource, AnswerSource):
    """`ResponseSource` and `AnswerSource` through a pool."""

    def __init__(self, pool: Pool, *, timeout_s: float) -> None:
        self._client = pool.client(cure="look at its log, add rollouts.refresh.replicas")
        self._timeout_s = timeout_s

    def request(self, request: ResponseRequest) -> tuple[list[Future[PairBatch]], Future[Written]]:
        first, count = request.batches[0], len(request.batches)
        name = f"responses of version {request.version.number} for update {first.update} micro {first.micro}"
        sent = self._client.submit(Request(id=name, method="write", args=(request,), num_results=count + 1))
        given = (self._client, sent, self._timeout_s)
        batches = [RemoteBatch(*given, index=i, asked=asked) for i, asked in enumerate(request.batches)]
        return list(batches), RemoteFuture(*given, index=count)

    def answer(self, version: PolicyVersion, prompts: tuple[Prompt, ...]) -> Answers:
        name = f"answers of version {version.number} from {prompts[0].id}"
        request = self._client.submit(Request(id=name, method="answer", args=(version, prompts)))
        return RemoteFuture(self._client, request, self._timeout_s)


class RemoteSignals(SignalSource):
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
        max_quarantined: int,
    ) -> None:
        """`rank` makes this process's requests known by name; for the last two see the judge's section."""
        self._max_quarantined = max_quarantined
        self._teacher = None if teacher is None else teacher.client()
        self._request = request
        self._judge = None if judge is None else judge.client(max_crashes=max_crashes)
        self._timeout_s = timeout_s
        self._rank = rank

    def take_judge_traffic(self) -> JudgeTraffic:
        """What happened to judge requests since the last call."""
        return JudgeTraffic() if self._judge is None else self._judge.take_traffic()

    def request_teacher(self, batch: Future[PairBatch]) -> Future[TeacherSignals]:
        assert self._teacher is not None
        args = (_argument(batch), self._request)
        request = Request(id=self._name(batch, "annotate"), method="annotate", args=args, num_results=2)
        return RemoteFuture(self._teacher, self._teacher.submit(request), self._timeout_s, index=0)

    def request_student_prefix_scores(
        self, batch: Future[PairBatch], teacher: Future[TeacherSignals]
    ) -> Future[JudgeScores]:
        """The proposals go from the teacher's node to the judge's, not through here."""
        assert isinstance(teacher, RemoteFuture)
        return self._score(batch, "student", teacher.part(1))

    def request_teacher_prefix_scores(self, batch: PairBatch, proposals: IntArray) -> Future[JudgeScores]:
        return self._score(done(batch), "teacher", proposals)

    def self_check(self, batch: PairBatch, side: Side, proposals: IntArray) -> float:
        assert self._judge is not None
        request = self._ask("self_check", done(batch), side, proposals)
        difference = self._judge.result(request, timeout_s=self._timeout_s)
        if request.quarantined:
            raise JudgeError(
                f"judge processes died of the self-check (request {request.id}) {request.crashes} times; look at their"
                " log"
            )
        return float(difference)

    def _score(self, batch: Future[PairBatch], side: Side, proposals: Any) -> Future[JudgeScores]:
        assert self._judge is not None
        request = self._ask("score", batch, side, proposals)
        return remote_scores(
            self._judge,
            request,
            batch=batch,
            side=side,
            timeout_s=self._timeout_s,
            max_quarantined=self._max_quarantined,
        )

    def _ask(self, method: str, batch: Future[PairBatch], side: Side, proposals: Any) -> Request:
        assert self._judge is not None
        args = (_argument(batch), side, proposals)
        return self._judge.submit(Request(id=self._name(batch, f"{side} {method}"), method=method, args=args))

    def _name(self, batch: Future[PairBatch], question: str) -> str:
        asked = batch.asked if isinstance(batch, RemoteBatch) else batch.result()
        return f"update {asked.update} micro {asked.micro} rank {self._rank} {question}"


def _argument(batch: Future[PairBatch]) -> Any:
    """What another actor is sent: a batch that is still being written goes to it from its writer, not through here."""
    return batch.sent if isinstance(batch, RemoteBatch) else batch.result()
