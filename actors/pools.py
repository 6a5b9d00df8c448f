"""Pools of stateless actors, and the update loop's signals through them. References travel, payloads do not.

Which replica answers changes nothing in the answer. A dead one is restarted by Ray; the teacher's requests are sent again
by Ray, the judge's by judge_pool.py, whose transport is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, ObjectLostError, RayActorError
from ray.experimental import internal_kv

from actors.judge_pool import AnswerLostError, JudgeClient, ReplicaDownError, ReplicaGoneError, Request, Tag
from actors.placement import actor_options, role_resources
from actors.roles import EngineActor, JudgeActor
from vcrd_ray.analysis.telemetry import JudgeTraffic
from vcrd_ray.config import Config
from vcrd_ray.engines import Use
from vcrd_ray.errors import JudgeError, ScheduleError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.judging import judged_at
from vcrd_ray.models import load_tokenizer, resolve_model
from vcrd_ray.signals import Pending
from vcrd_ray.types import IntArray, JudgeScores, PairBatch, Side, TeacherRequest, TeacherSignals


class Pool:
    """Replicas of one actor, asked in turn. Pickles to other processes; the creator owns the actors."""

    def __init__(self, role: str, replicas: Sequence[Any]) -> None:
        self.role = role
        self.replicas = list(replicas)
        self._next = 0

    def pick(self) -> Any:
        """The replica whose turn it is."""
        replica = self.replicas[self._next % len(self.replicas)]
        self._next += 1
        return replica

    def wait_ready(self, timeout_s: float) -> list[int]:
        """Process ids of all replicas once their models are loaded.

        Raises:
            ScheduleError: they could not be placed or loaded in time, or one died at start.
        """
        try:
            return cast(list[int], ray.get([r.ready.remote() for r in self.replicas], timeout=timeout_s))
        except GetTimeoutError:
            raise ScheduleError(
                f"the {self.role} pool ({len(self.replicas)} actors) was not ready after {timeout_s:g} s; the cluster offers"
                f" {ray.cluster_resources()}; ask for less, add nodes, or raise cluster.start_timeout_s"
            ) from None
        except RayActorError as error:
            raise ScheduleError(f"an actor of the {self.role} pool died at start: {error}") from error

    def stop(self) -> None:
        """End the actors of this pool."""
        for replica in self.replicas:
            ray.kill(replica)


def engine_pool(config: Config, *, path: str, role: str, replicas: int) -> Pool:
    """Actors that hold the model at `path` with the teacher's resources."""
    remote = ray.remote(EngineActor).options(**actor_options(role_resources(config, "teacher")))
    use: Use = "annotate" if role == "teacher" else "generate"
    return Pool(role, [remote.remote(config.teacher, path, use=use, seed=config.run.seed) for _ in range(replicas)])


def teacher_pool(config: Config) -> Pool | None:
    """Actors that hold the teacher; None where the objective needs none."""
    if not config.distill.objective.needs_teacher:
        return None
    return engine_pool(config, path=config.teacher.path, role="teacher", replicas=config.teacher.replicas)


def judge_pool(config: Config, *, load: Callable[[], Judge] | None = None) -> Pool | None:
    """Actors that hold the judge; None where the weighting needs none.

    Args:
        load: makes the judge in each actor; the configured one, if not given.
    """
    if not config.distill.objective.needs_judge:
        return None
    section = config.judge
    if section.calibration is not None:
        # Workers stand in other directories.
        section = section.model_copy(update={"calibration": section.calibration.resolve()})
    options = actor_options(role_resources(config, "judge"))
    # Ray would send a request to the same actor again and again, also one that kills it: JudgeClient decides instead.
    options |= {"max_task_retries": 0, "max_concurrency": section.merge_requests}
    remote = ray.remote(JudgeActor).options(**options)
    make = partial(
        remote.remote,
        load or partial(load_judge, section, policy=config.student.path),
        threads=section.threads,
        merge_requests=section.merge_requests,
        seed=config.run.seed,
        running=mark_running,
        only_at=judged_at(config.distill.objective.weighting, load_tokenizer(resolve_model(config.student.path))),
        cache_dir=None if section.cache is None else (section.cache.path or config.run.dir / "judge-cache").resolve(),
        cache_bytes=0 if section.cache is None else int(section.cache.max_gib * 1024**3),
    )
    return Pool("judge", [make() for _ in range(section.replicas)])


def judge_fingerprint(pool: Pool) -> str:
    """Identity of the judge that a ready pool holds."""
    return cast(str, ray.get(pool.replicas[0].fingerprint.remote()))


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

    def __init__(self, pool: Pool) -> None:
        self._replicas = pool.replicas
        self._actor_ids = {replica._actor_id.hex() for replica in pool.replicas}

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
                raise  # the teacher, whose proposals the request was to judge
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


class _RemoteScores:
    """A judge's answer, or that there is none."""

    def __init__(
        self, client: JudgeClient, request: Request, *, num_rows: int, timeout_s: float, max_set_aside: int
    ) -> None:
        self._client = client
        self._max_set_aside = max_set_aside
        self._request = request
        self._num_rows = num_rows
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
            return JudgeScores.nothing(self._num_rows, set_aside=True)
        return cast(JudgeScores, answer)


class _RemoteTeacher:
    """A teacher's answer, and the reference to its proposals for the judge."""

    def __init__(self, refs: list[Any], timeout_s: float) -> None:
        self._signals, self.proposals = refs
        self._timeout_s = timeout_s

    def result(self) -> TeacherSignals:
        """See `Pending`."""
        return cast(TeacherSignals, _get_teacher(self._signals, self._timeout_s))


def _get_teacher(ref: Any, timeout_s: float) -> Any:
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        raise ScheduleError(
            f"no answer from the teacher pool after {timeout_s:g} s; look at its log, or raise cluster.request_timeout_s"
        ) from None
    except ActorDiedError as error:
        raise ScheduleError(f"the teacher pool is gone for good: {error}") from error


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
            else JudgeClient(RayTransport(judge), num_replicas=len(judge.replicas), max_crashes=max_crashes)
        )
        self._timeout_s = timeout_s
        self._rank = rank

    def take_judge_traffic(self) -> JudgeTraffic:
        """What happened to judge requests since the last call."""
        return JudgeTraffic() if self._judge is None else self._judge.take_traffic()

    def request_teacher(self, batch: PairBatch) -> Pending[TeacherSignals]:
        """See `SignalSource`."""
        assert self._teacher is not None
        refs = self._teacher.pick().annotate.options(num_returns=2).remote(batch, self._request)
        return _RemoteTeacher(refs, self._timeout_s)

    def request_student_prefix_scores(self, batch: PairBatch, teacher: Pending[TeacherSignals]) -> Pending[JudgeScores]:
        """See `SignalSource`. The proposals go from the teacher's node to the judge's, not through here."""
        assert isinstance(teacher, _RemoteTeacher)
        return self._score(batch, "student", teacher.proposals)

    def request_teacher_prefix_scores(self, batch: PairBatch, proposals: IntArray) -> Pending[JudgeScores]:
        """See `SignalSource`."""
        return self._score(batch, "teacher", proposals)

    def self_check(self, batch: PairBatch, side: Side, candidates: IntArray) -> float:
        """See `SignalSource`."""
        assert self._judge is not None
        request = self._ask("self_check", batch, side, candidates)
        difference = self._judge.result(request, timeout_s=self._timeout_s)
        if request.set_aside:
            raise JudgeError(
                f"judge processes died of the self-check (request {request.id}) {request.crashes} times; look at their log"
            )
        return float(difference)

    def _score(self, batch: PairBatch, side: Side, candidates: Any) -> Pending[JudgeScores]:
        assert self._judge is not None
        rows = batch.rows.side_rows(side)
        request = self._ask("score", batch, side, candidates)
        return _RemoteScores(
            self._judge,
            request,
            num_rows=rows.stop - rows.start,
            timeout_s=self._timeout_s,
            max_set_aside=self._max_set_aside,
        )

    def _ask(self, method: str, batch: PairBatch, side: Side, candidates: Any) -> Request:
        assert self._judge is not None
        name = f"update {batch.update} micro {batch.micro} rank {self._rank} {side} {method}"
        return self._judge.submit(Request(id=name, method=method, args=(batch, side, candidates)))
