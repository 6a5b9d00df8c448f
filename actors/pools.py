"""Pools of stateless actors: what each is made of and where it is placed.

Which replica answers changes nothing in the answer. A dead one is restarted by Ray; requests to teacher and rollout actors
are sent again by Ray, the judge's by judge_pool.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from actors.judge_transport import mark_running
from actors.placement import actor_options, role_resources
from actors.roles import EngineActor, JudgeActor, RolloutActor, student_engine
from vcrd_ray.config import Config
from vcrd_ray.engines import Use, VersionedEngine
from vcrd_ray.errors import ScheduleError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.judging import judged_at
from vcrd_ray.models import load_tokenizer, resolve_model


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


def rollout_pool(config: Config, *, load: Callable[[Config], VersionedEngine] | None = None) -> Pool | None:
    """Actors that write the student's responses while it trains, or answer what it is watched by; None where nobody asks.

    Args:
        load: makes the engine in each actor; the configured one, if not given.
    """
    section = config.rollouts.refresh
    if not config.needs_rollout_actors:
        return None
    remote = ray.remote(RolloutActor).options(**actor_options(role_resources(config, "rollout")))
    return Pool("rollout", [remote.remote(config, load or student_engine) for _ in range(section.replicas)])
