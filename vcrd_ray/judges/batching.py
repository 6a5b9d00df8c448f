"""Requests of several callers in one pass of a judge. Knows no Ray: callers are threads.

Whoever finds the judge free carries out the next pass, for the earliest waiting requests and so for others than its own.
Who shares a pass depends on timing, and rounding on who shares it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from vcrd_ray.judges import Judge
from vcrd_ray.types import FloatArray, JudgeRequest, JudgeScores, StepSolution


@dataclass(kw_only=True, eq=False)
class _Waiting:
    """A caller's request. Settled when it has an answer or an error."""

    request: JudgeRequest
    alone: bool
    during: AbstractContextManager[object]
    answer: JudgeScores | None = None
    error: BaseException | None = None

    @property
    def settled(self) -> bool:
        return self.answer is not None or self.error is not None


class BatchingJudge(Judge):
    """`Judge` for several threads: what arrives while a pass runs shares the next one."""

    def __init__(self, judge: Judge, *, max_requests: int) -> None:
        """At most `max_requests` requests share a pass."""
        self._judge = judge
        self.profile = judge.profile
        self._max_requests = max_requests
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()
        self._pass_lock = threading.Lock()

    def score(
        self, request: JudgeRequest, *, alone: bool = False, during: AbstractContextManager[object] | None = None
    ) -> JudgeScores:
        """Tokens and seconds of a pass are divided by the number of scores, rounded to whole tokens.

        Args:
            alone: share the pass with nobody.
            during: entered before the pass that this request is in and left after it.
        """
        mine = _Waiting(request=request, alone=alone, during=during or nullcontext())
        with self._queue_lock:
            self._queue.append(mine)
        while not mine.settled:
            with self._pass_lock:
                if not mine.settled:
                    self._run(self._take())
        if mine.error is not None:
            raise mine.error
        assert mine.answer is not None
        return mine.answer

    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        """Never shared."""
        with self._pass_lock:
            return self._judge.score_steps(solutions)

    def self_check(
        self,
        request: JudgeRequest,
        *,
        num_branches: int,
        seed: int,
        during: AbstractContextManager[object] | None = None,
    ) -> float:
        """Never shared. `during` is held while it is worked on."""
        with self._pass_lock, during or nullcontext():
            return self._judge.self_check(request, num_branches=num_branches, seed=seed)

    def _take(self) -> list[_Waiting]:
        """The requests of the next pass, earliest first."""
        with self._queue_lock:
            count = 1
            if not self._queue[0].alone:
                while count < min(len(self._queue), self._max_requests) and not self._queue[count].alone:
                    count += 1
            taken, self._queue = self._queue[:count], self._queue[count:]
            return taken

    def _run(self, taken: Sequence[_Waiting]) -> None:
        """Settle all of them, whatever happens."""
        try:
            with ExitStack() as stack:
                for waiting in taken:
                    stack.enter_context(waiting.during)
                if len(taken) > 1 and self._run_merged(taken):
                    return
                for waiting in taken:
                    try:
                        waiting.answer = self._judge.score(waiting.request)
                    except Exception as error:
                        waiting.error = error
        except BaseException as error:
            for waiting in taken:
                if not waiting.settled:
                    waiting.error = error
            if not isinstance(error, Exception):
                raise

    def _run_merged(self, taken: Sequence[_Waiting]) -> bool:
        """Answer all in one pass; False where that failed and each must be asked alone, to find which is the bad one."""
        requests = [waiting.request for waiting in taken]
        try:
            scores = self._judge.score(_merge(requests))
        except Exception:
            return False
        lengths = [sum(map(len, request.responses)) for request in requests]
        if not (scores.trunk_logit.shape == scores.branch_logit.shape == (sum(lengths),)):
            return False
        for waiting, part in zip(taken, _split(scores, requests, lengths), strict=True):
            waiting.answer = part
        return True


def _merge(requests: Sequence[JudgeRequest]) -> JudgeRequest:
    return JudgeRequest(
        questions=tuple(q for r in requests for q in r.questions),
        responses=tuple(ids for r in requests for ids in r.responses),
        proposals=tuple(ids for r in requests for ids in r.proposals),
    )


def _split(scores: JudgeScores, requests: Sequence[JudgeRequest], lengths: Sequence[int]) -> list[JudgeScores]:
    cuts = list(accumulate(lengths, initial=0))
    work = list(accumulate((_num_scores(request) for request in requests), initial=0))
    tokens = [scores.num_tokens * done // work[-1] for done in work]
    return [
        JudgeScores(
            trunk_logit=scores.trunk_logit[rows[0] : rows[1]],
            branch_logit=scores.branch_logit[rows[0] : rows[1]],
            num_tokens=last_token - first_token,
            seconds=scores.seconds * (done - begun) / work[-1],
        )
        for rows, (first_token, last_token), (begun, done) in zip(
            pairwise(cuts), pairwise(tokens), pairwise(work), strict=True
        )
    ]


def _num_scores(request: JudgeRequest) -> int:
    """Response tokens and proposals that differ from them, at least 1: how much of a pass a request is."""
    differing = sum(int(np.sum(r != c)) for r, c in zip(request.responses, request.proposals, strict=True))
    return max(1, sum(map(len, request.responses)) + differing)
