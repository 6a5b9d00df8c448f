"""Several threads, one judge: who shares a pass, what each gets back, whom a failure reaches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vcrd_ray.judges import JudgeProfile
from vcrd_ray.judges.batching import BatchingJudge
from vcrd_ray.types import FloatArray, JudgeRequest, JudgeScores, StepSolution

PROFILE = JudgeProfile(fingerprint="gated", family="gated", scores="token", reads="nowhere", trained_on="nothing")


class GatedJudge:
    """Scores a token by its id and its question. Each pass waits for the gate; records who was in which pass."""

    profile = PROFILE

    def __init__(self) -> None:
        self.gate, self.entered = threading.Semaphore(0), threading.Semaphore(0)
        self.passes: list[tuple[str, ...]] = []
        self.change: Callable[[JudgeScores], JudgeScores] = lambda scores: scores
        self._inside = threading.Lock()

    def score(self, request: JudgeRequest) -> JudgeScores:
        assert self._inside.acquire(blocking=False), "one pass at a time"
        try:
            self.passes.append(request.questions)
            self.entered.release()
            assert self.gate.acquire(timeout=10)
            if "bad" in request.questions:
                raise ValueError("a bad question")
            base = np.concatenate([np.full(len(r), len(q)) for q, r in zip(*_qr(request), strict=True)])
            trunk = (base + np.concatenate(request.responses)).astype(np.float32)
            proposal = (base + np.concatenate(request.proposals)).astype(np.float32)
            tokens = 10 * len(trunk)
            return self.change(JudgeScores(trunk_logit=trunk, branch_logit=proposal, num_tokens=tokens, seconds=6.0))
        finally:
            self._inside.release()

    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        return [np.zeros(len(solution.steps), np.float32) for solution in solutions]

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        self.score(request)
        return 0.5


def _qr(request: JudgeRequest) -> tuple[Any, Any]:
    return request.questions, request.responses


def ask(question: str, length: int = 2) -> JudgeRequest:
    ids = np.arange(length, dtype=np.int32)
    return JudgeRequest(questions=(question,), responses=(ids,), proposals=(ids + 1,))


class Callers:
    """Threads that ask; the first one holds the judge until `open` is called."""

    def __init__(self, *, max_requests: int = 8) -> None:
        self.judge = GatedJudge()
        self.merging = BatchingJudge(self.judge, max_requests=max_requests)
        self._threads = ThreadPoolExecutor(16)
        self.first = self._threads.submit(self.merging.score, ask("first"))
        assert self.judge.entered.acquire(timeout=10)

    def ask(self, request: JudgeRequest, **options: Any) -> Future[JudgeScores]:
        waiting = len(self.merging._queue)
        future = self._threads.submit(self.merging.score, request, **options)
        while len(self.merging._queue) == waiting:
            time.sleep(0.001)
        return future

    def open(self) -> None:
        self.judge.gate.release(100)


def test_what_arrives_during_a_pass_shares_the_next_one_and_each_gets_its_own_answer() -> None:
    callers = Callers()
    futures = [callers.ask(ask(name, length)) for name, length in (("a", 1), ("bcd", 4), ("ef", 2))]
    callers.open()
    assert [f.result(10).trunk_logit.tolist() for f in futures] == [[1], [3, 4, 5, 6], [2, 3]]
    assert [f.result().branch_logit.tolist() for f in futures] == [[2], [4, 5, 6, 7], [3, 4]]
    assert callers.first.result().num_tokens == 20
    assert callers.judge.passes == [("first",), ("a", "bcd", "ef")]


def test_tokens_and_seconds_of_a_pass_are_divided_without_loss() -> None:
    callers = Callers()
    callers.judge.change = lambda scores: replace(scores, num_tokens=101)
    futures = [callers.ask(ask("x", length)) for length in (1, 4, 2)]
    callers.open()
    answers = [f.result(10) for f in futures]
    assert [a.num_tokens for a in answers] == [14, 58, 29] and sum(a.num_tokens for a in answers) == 101
    assert [a.seconds for a in answers] == pytest.approx([6 / 7, 24 / 7, 12 / 7])


def test_no_more_than_the_given_number_share_a_pass_and_the_earliest_go_first() -> None:
    callers = Callers(max_requests=2)
    futures = [callers.ask(ask(name)) for name in "abcde"]
    callers.open()
    assert all(f.result(10).num_tokens == 20 for f in futures)
    assert callers.judge.passes == [("first",), ("a", "b"), ("c", "d"), ("e",)]


def test_a_request_that_must_be_alone_shares_with_nobody_and_keeps_its_place() -> None:
    callers = Callers()
    futures = [callers.ask(ask(name), alone=name in "cd") for name in "abcde"]
    callers.open()
    assert all(f.result(10).num_tokens == 20 for f in futures)
    assert callers.judge.passes[1:] == [("a", "b"), ("c",), ("d",), ("e",)]


def test_an_exception_reaches_the_bad_request_alone() -> None:
    callers = Callers()
    futures = [callers.ask(ask(name)) for name in ("a", "bad", "c")]
    callers.open()
    with pytest.raises(ValueError, match="a bad question"):
        futures[1].result(10)
    assert [futures[i].result(10).trunk_logit.tolist() for i in (0, 2)] == [[1, 2], [1, 2]]
    assert callers.first.result().trunk_logit.tolist() == [5, 6]
    assert callers.judge.passes[1:] == [("a", "bad", "c"), ("a",), ("bad",), ("c",)]


def test_an_answer_of_a_wrong_length_is_not_cut_up_among_callers() -> None:
    callers = Callers()
    callers.judge.change = lambda s: replace(s, trunk_logit=s.trunk_logit[1:]) if len(s.trunk_logit) > 2 else s
    futures = [callers.ask(ask(name)) for name in "ab"]
    callers.open()
    assert [f.result(10).trunk_logit.tolist() for f in futures] == [[1, 2], [1, 2]]
    assert callers.judge.passes[1:] == [("a", "b"), ("a",), ("b",)]


def test_a_request_is_marked_while_its_own_pass_runs_and_not_while_it_waits() -> None:
    marked: set[str] = set()
    seen: list[set[str]] = []

    @contextmanager
    def mark(name: str) -> Iterator[None]:
        marked.add(name)
        try:
            yield
        finally:
            marked.remove(name)

    callers = Callers(max_requests=2)
    callers.judge.change = lambda scores: (seen.append(set(marked)), scores)[1]
    futures = [callers.ask(ask(name), during=mark(name)) for name in ("a", "b", "c", "bad")]
    callers.open()
    assert [type(f.exception(10)) for f in futures] == [type(None)] * 3 + [ValueError]
    assert seen == [set(), {"a", "b"}, {"c", "bad"}] and not marked


def test_a_mark_that_fails_reaches_its_caller_and_stops_nobody_after_it() -> None:
    @contextmanager
    def broken() -> Iterator[None]:
        raise OSError("no store")
        yield

    callers = Callers()
    failing = callers.ask(ask("a"), during=broken(), alone=True)
    after = callers.ask(ask("b"), during=nullcontext())
    callers.open()
    with pytest.raises(OSError, match="no store"):
        failing.result(10)
    assert after.result(10).trunk_logit.tolist() == [1, 2]


def test_a_self_check_and_steps_wait_for_the_pass() -> None:
    callers = Callers()
    check = callers._threads.submit(callers.merging.self_check, ask("s"), num_branches=1, seed=0)
    callers.open()
    assert check.result(10) == 0.5 and callers.first.result(10).num_tokens == 20
    assert callers.merging.score_steps([StepSolution(question="q", steps=("a", "b"))])[0].shape == (2,)
    assert callers.merging.profile is PROFILE
