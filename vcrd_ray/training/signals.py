"""How the update loop asks teacher and judge: requests that are made early and waited for late. Knows no Ray.

`LocalSignals` computes in this process when it is waited for; the actors' version holds object references.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Collection
from typing import Protocol, TypeVar

from vcrd_ray.engines import Engine
from vcrd_ray.judges import Judge
from vcrd_ray.judges.requests import judge_request
from vcrd_ray.judges.self_check import NUM_BRANCHES
from vcrd_ray.types import IntArray, JudgeScores, PairBatch, Side, TeacherRequest, TeacherSignals

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Future(Protocol[T_co]):
    """An answer that may not be there yet, as `concurrent.futures.Future` gives it."""

    def result(self) -> T_co:
        """Wait for it. Every call gives the same answer."""
        ...


class SignalSource(Protocol):
    """Teacher and judge as the update loop sees them."""

    def request_teacher(self, batch: Future[PairBatch]) -> Future[TeacherSignals]:
        """Ask for the teacher's signals on a micro-batch, as soon as its responses are there."""
        ...

    def request_student_prefix_scores(
        self, batch: Future[PairBatch], teacher: Future[TeacherSignals]
    ) -> Future[JudgeScores]:
        """Ask for the scores of both proposals on student prefixes, as soon as the teacher's proposals are there.

        Depends on no student weights, so it may be asked any number of updates ahead.
        """
        ...

    def request_teacher_prefix_scores(self, batch: PairBatch, proposals: IntArray) -> Future[JudgeScores]:
        """Ask for the scores of both proposals on teacher prefixes, given the student's proposals. [N_teacher]"""
        ...

    def self_check(self, batch: PairBatch, side: Side, proposals: IntArray) -> float:
        """Largest logit difference between packed and separate judging on some branches of one side's request."""
        ...


def done(answer: T) -> Future[T]:
    """An answer that is there."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    future.set_result(answer)
    return future


class Deferred(Future[T_co]):
    """Computes on first need and keeps the answer."""

    def __init__(self, compute: Callable[[], T_co]) -> None:
        self._compute = compute
        self._answer: list[T_co] = []

    def result(self) -> T_co:
        if not self._answer:
            self._answer.append(self._compute())
        return self._answer[0]


class LocalSignals(SignalSource):
    """Teacher and judge in this process, one after the other."""

    def __init__(
        self,
        *,
        teacher: Engine | None,
        judge: Judge | None,
        request: TeacherRequest,
        only_at: Collection[int] | None = None,
    ) -> None:
        """`only_at`: see `judge_request`."""
        self._only_at = only_at
        self._teacher = teacher
        self._judge = judge
        self._request = request

    def request_teacher(self, batch: Future[PairBatch]) -> Future[TeacherSignals]:
        teacher = self._teacher
        assert teacher is not None
        return Deferred(lambda: teacher.annotate(batch.result(), self._request))

    def request_student_prefix_scores(
        self, batch: Future[PairBatch], teacher: Future[TeacherSignals]
    ) -> Future[JudgeScores]:
        return Deferred(lambda: self._score(batch.result(), "student", teacher.result().student_prefix_proposals))

    def request_teacher_prefix_scores(self, batch: PairBatch, proposals: IntArray) -> Future[JudgeScores]:
        return Deferred(lambda: self._score(batch, "teacher", proposals))

    def self_check(self, batch: PairBatch, side: Side, proposals: IntArray) -> float:
        assert self._judge is not None
        return self._judge.self_check(
            judge_request(batch, side, proposals, only_at=self._only_at),
            num_branches=NUM_BRANCHES,
            seed=self._request.seed,
        )

    def _score(self, batch: PairBatch, side: Side, proposals: IntArray) -> JudgeScores:
        assert self._judge is not None
        return self._judge.score(judge_request(batch, side, proposals, only_at=self._only_at))
