"""Pools of stateless actors, and the update loop's signals through them. References travel, payloads do not.

Which replica answers changes nothing in the answer; a dead one is restarted by Ray and its requests are sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError

from actors.placement import actor_options, role_resources
from actors.roles import EngineActor, JudgeActor
from vcrd_ray.config import Config
from vcrd_ray.errors import ScheduleError
from vcrd_ray.signals import Pending
from vcrd_ray.types import IntArray, JudgeScores, PairBatch, Side, TeacherRequest, TeacherSignals

T = TypeVar("T")


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
    section = config.teacher
    return Pool(
        role,
        [
            remote.remote(
                path, dtype=section.dtype, gpus=section.gpus_per_replica, threads=section.threads, seed=config.run.seed
            )
            for _ in range(replicas)
        ],
    )


def teacher_pool(config: Config) -> Pool | None:
    """Actors that hold the teacher; None where the objective needs none."""
    if not config.distill.objective.needs_teacher:
        return None
    return engine_pool(config, path=config.teacher.path, role="teacher", replicas=config.teacher.replicas)


def judge_pool(config: Config) -> Pool | None:
    """Actors that hold the judge; None where the weighting needs none."""
    if not config.distill.objective.needs_judge:
        return None
    remote = ray.remote(JudgeActor).options(**actor_options(role_resources(config, "judge")))
    return Pool("judge", [remote.remote(config) for _ in range(config.judge.replicas)])


class _Remote(Generic[T]):
    """An answer behind one reference."""

    def __init__(self, ref: Any, role: str, timeout_s: float) -> None:
        self.ref = ref
        self._role = role
        self._timeout_s = timeout_s

    def result(self) -> T:
        """See `Pending`."""
        return cast(T, _get(self.ref, self._role, self._timeout_s))


class _RemoteTeacher:
    """A teacher's answer, and the reference to its proposals for the judge."""

    def __init__(self, refs: list[Any], timeout_s: float) -> None:
        self._signals, self.proposals = refs
        self._timeout_s = timeout_s

    def result(self) -> TeacherSignals:
        """See `Pending`."""
        return cast(TeacherSignals, _get(self._signals, "teacher", self._timeout_s))


def _get(refs: Any, role: str, timeout_s: float) -> Any:
    try:
        return ray.get(refs, timeout=timeout_s)
    except GetTimeoutError:
        raise ScheduleError(
            f"no answer from the {role} pool after {timeout_s:g} s; look at its log, or raise cluster.request_timeout_s"
        ) from None
    except ActorDiedError as error:
        raise ScheduleError(f"the {role} pool is gone for good: {error}") from error


class RemoteSignals:
    """`SignalSource` through actor pools."""

    def __init__(self, *, teacher: Pool | None, judge: Pool | None, request: TeacherRequest, timeout_s: float) -> None:
        self._teacher = teacher
        self._request = request
        self._judge = judge
        self._timeout_s = timeout_s

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
        ref = self._judge.pick().self_check.remote(batch, side, candidates)
        return float(_get(ref, "judge", self._timeout_s))

    def _score(self, batch: PairBatch, side: str, candidates: Any) -> Pending[JudgeScores]:
        assert self._judge is not None
        return _Remote(self._judge.pick().score.remote(batch, side, candidates), "judge", self._timeout_s)
