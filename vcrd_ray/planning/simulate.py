"""The real schedule on simulated servers: how long an update takes and how long ranks wait. Knows no models and no clock.

Each rank carries out `vcrd_ray.method.schedule.plan`, as the update loop does. Teacher and judge replicas answer one request
at a time in the order of arrival; a rank asks teachers in turn, and the judge that has fewest of its unfinished requests. Ranks
meet at every step. Service times are drawn around their means, from a seed.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from vcrd_ray.method.schedule import Action, plan


@dataclass(frozen=True, kw_only=True)
class ServiceTimes:
    """Means, in seconds, of one micro-batch of one rank; `step_s` of an update. 0: not asked for."""

    forward_s: float
    """The student's layers; the teacher's answer is needed behind them."""
    loss_s: float
    """Divergence and gradient rows; the judge is asked behind them."""
    backward_s: float
    step_s: float
    teacher_s: float
    judge_teacher_s: float
    """Judging teacher responses, which waits for the student's proposals."""
    judge_student_s: float
    """Judging student responses, which waits for the teacher's proposals."""
    transfer_s: float = 0.0
    """From a replica that has answered the teacher's request to the rank, beside its work."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many of what."""

    ranks: int
    num_micro: int
    teachers: int
    judges: int
    overlap: bool
    prefetch: int


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Means over the counted updates and over ranks."""

    total_s: float
    """Of all updates, the first ones included."""
    update_s: float
    wait_teacher_s: float
    wait_judge_s: float
    teacher_busy: float
    """Share of the time that a teacher works, over the whole run."""
    judge_busy: float


def simulate(
    times: ServiceTimes, sizes: Sizes, *, num_updates: int, warm_up: int = 0, variation: float = 0.0, seed: int = 0
) -> Simulated:
    """Carry out `num_updates`; all but the first `warm_up` are counted."""
    if not 0 <= warm_up < num_updates:
        raise ValueError(f"warm_up {warm_up} leaves none of {num_updates} updates to count")
    run = _Run(times, sizes, num_updates=num_updates, spread=_Spread(variation, seed))
    run.finish()
    counted = num_updates - warm_up
    begin = run.step_ends[warm_up - 1] if warm_up else 0.0

    def mean(waits: list[float]) -> float:
        return sum(waits[warm_up:]) / counted / sizes.ranks

    end = run.step_ends[-1]
    return Simulated(
        total_s=end,
        update_s=(end - begin) / counted,
        wait_teacher_s=mean(run.wait_teacher_s),
        wait_judge_s=mean(run.wait_judge_s),
        teacher_busy=run.teachers.worked_s / (end * sizes.teachers) if end else 0.0,
        judge_busy=run.judges.worked_s / (end * sizes.judges) if end else 0.0,
    )


class _Spread:
    """Log-normal factors of mean 1."""

    def __init__(self, variation: float, seed: int) -> None:
        self._sigma = math.sqrt(math.log1p(variation**2))
        self._random = np.random.default_rng(seed)

    def __call__(self, seconds: float) -> float:
        if not self._sigma:
            return seconds
        return seconds * float(self._random.lognormal(-(self._sigma**2) / 2, self._sigma))


@dataclass(eq=False)
class _Job:
    """A request, until it is answered."""

    done: bool = False
    waiting: list[Callable[[], None]] = field(default_factory=list)


@dataclass(eq=False)
class _Servers:
    """Replicas of one pool: when each has finished what it has been handed."""

    free_at: list[float]
    worked_s: float = 0.0

    def work(self, replica: int, now: float, seconds: float) -> float:
        """When a request that arrives now will be answered."""
        self.free_at[replica] = max(self.free_at[replica], now) + seconds
        self.worked_s += seconds
        return self.free_at[replica]


_Step = float | _Job | None
"""What a rank does next: work for some seconds, wait for a job, or (None) for all ranks."""


class _Run:
    def __init__(self, times: ServiceTimes, sizes: Sizes, *, num_updates: int, spread: _Spread) -> None:
        self._times, self._sizes, self._num_updates, self._spread = times, sizes, num_updates, spread
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = 0
        self._at_barrier: list[Iterator[_Step]] = []
        self.teachers = _Servers([0.0] * sizes.teachers)
        self.judges = _Servers([0.0] * sizes.judges)
        self.step_ends = [0.0] * num_updates
        self.wait_teacher_s = [0.0] * num_updates
        self.wait_judge_s = [0.0] * num_updates

    def finish(self) -> None:
        """Until nothing happens any more."""
        for _ in range(self._sizes.ranks):
            self._advance(self._rank())
        while self._events:
            self._now, _, happen = heapq.heappop(self._events)
            happen()

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        # Events of the same time happen in the order in which they were foreseen.
        self._counter += 1
        heapq.heappush(self._events, (time, self._counter, happen))

    def _advance(self, rank: Iterator[_Step]) -> None:
        try:
            step = next(rank)
        except StopIteration:
            return
        if step is None:
            self._at_barrier.append(rank)
            if len(self._at_barrier) == self._sizes.ranks:
                met, self._at_barrier = self._at_barrier, []
                for each in met:
                    self._at(self._now, lambda each=each: self._advance(each))  # type: ignore[misc]
        elif isinstance(step, _Job):
            if step.done:
                self._at(self._now, lambda: self._advance(rank))
            else:
                step.waiting.append(lambda: self._advance(rank))
        else:
            self._at(self._now + step, lambda: self._advance(rank))

    def _rank(self) -> Iterator[_Step]:
        times, sizes = self._times, self._sizes
        asked: dict[tuple[int, int], tuple[_Job, _Job]] = {}
        judged: dict[tuple[int, int], list[_Job]] = {}
        client = _Client(self, sizes)
        for op in plan(
            first_update=0,
            num_updates=self._num_updates,
            num_micro=sizes.num_micro,
            overlap=sizes.overlap,
            prefetch=sizes.prefetch,
        ):
            key = (op.update, op.micro)
            match op.action:
                case Action.REQUEST_TEACHER:
                    asked[key] = client.ask_teacher()
                case Action.FORWARD:
                    teacher, student_side = asked.pop(key)
                    yield self._spread(times.forward_s)
                    began = self._now
                    yield teacher
                    self.wait_teacher_s[op.update] += self._now - began
                    yield self._spread(times.loss_s)
                    judged[key] = [student_side, client.ask_judge(times.judge_teacher_s)]
                case Action.BACKWARD:
                    began = self._now
                    yield from judged.pop(key)
                    self.wait_judge_s[op.update] += self._now - began
                    yield self._spread(times.backward_s)
                case Action.STEP:
                    yield None
                    yield times.step_s
                    self.step_ends[op.update] = self._now

    def serve(self, servers: _Servers, replica: int, seconds: float, job: _Job) -> None:
        """A request arrives at a replica now."""
        answered = servers.work(replica, self._now, self._spread(seconds))
        self._at(answered, lambda: self.settle(job))

    def settle(self, job: _Job) -> None:
        """A request is answered."""
        job.done = True
        for happen in job.waiting:
            happen()


class _Client:
    """One rank's requests."""

    def __init__(self, run: _Run, sizes: Sizes) -> None:
        self._run, self._times = run, run._times
        self._turn = 0
        self._num_teachers = sizes.teachers
        self._unfinished = [0] * sizes.judges

    def ask_teacher(self) -> tuple[_Job, _Job]:
        """The teacher's answer, and the scores of student responses that follow from it."""
        answer, scores = _Job(), _Job()
        if self._times.teacher_s == 0:
            answer.done = scores.done = True
            return answer, scores
        replica = self._turn % self._num_teachers
        self._turn += 1
        proposals = _Job()
        self._submit_judge(scores, self._times.judge_student_s, after=proposals)
        run = self._run

        def answered() -> None:
            # Proposals are few bytes: they are with the judge before the states are with the rank.
            run.settle(proposals)
            run._at(run._now + self._times.transfer_s, lambda: run.settle(answer))

        finished = _Job(waiting=[answered])
        run.serve(run.teachers, replica, self._times.teacher_s, finished)
        return answer, scores

    def ask_judge(self, seconds: float) -> _Job:
        """Scores of teacher responses."""
        scores = _Job()
        self._submit_judge(scores, seconds, after=None)
        return scores

    def _submit_judge(self, scores: _Job, seconds: float, *, after: _Job | None) -> None:
        if seconds == 0:
            scores.done = True
            return
        replica = min(range(len(self._unfinished)), key=lambda i: self._unfinished[i])
        self._unfinished[replica] += 1

        def finished() -> None:
            self._unfinished[replica] -= 1

        scores.waiting.append(finished)
        if after is None:
            self._run.serve(self._run.judges, replica, seconds, scores)
        else:
            after.waiting.append(lambda: self._run.serve(self._run.judges, replica, seconds, scores))
