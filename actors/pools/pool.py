"""Pools of stateless actors: what each is made of, and how a run waits for them.

Which replica answers changes nothing in the answer. Ray restarts dead ones where there is room; during a distillation their
requests are sent to others meanwhile (pool_client.py), elsewhere they wait for the restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from actors.placement import actor_options, role_resources
from actors.placement_wait import LOOK_EVERY_S, Waiting, say
from actors.pools.client import PoolClient
from actors.pools.requests import Request
from actors.pools.transport import RayTransport, mark_running
from actors.roles import EngineActor, JudgeActor, RolloutActor, student_engine
from vcrd_ray.config import Config
from vcrd_ray.engines import Use, VersionedEngine
from vcrd_ray.errors import ScheduleError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.judges.requests import judged_at
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model


class Pool:
    """Replicas of one actor. Pickles to other processes; the creator owns the actors.

    Work begins when `min_replicas` are ready. The others join whenever they are: `client` asks only those that are ready.
    """

    def __init__(
        self,
        role: str,
        replicas: Sequence[Any],
        *,
        min_replicas: int | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """`resources`: what each replica asks of the cluster, for those who are told why one is waited for."""
        self.role = role
        self.replicas = list(replicas)
        self.min_replicas = len(self.replicas) if min_replicas is None else min_replicas
        self._resources = dict(resources or {})
        self._pids: dict[int, int] = {}
        self._next = 0

    def pick(self) -> Any:
        """The replica whose turn it is. For pools that were waited for as a whole."""
        replica = self.replicas[self._next % len(self.replicas)]
        self._next += 1
        return replica

    def client(self, *, max_crashes: int | None = None, cure: str = "look at its log") -> PoolClient:
        """This process's way to ask the replicas; for the arguments see `PoolClient`."""
        # Blame needs marks, and only judges leave any.
        transport = RayTransport(self.replicas, marked=max_crashes is not None)
        return PoolClient(
            transport,
            role=self.role,
            num_replicas=len(self.replicas),
            max_crashes=max_crashes,
            cure=cure,
        )

    def wait_ready(self, timeout_s: float) -> list[int]:
        """Process ids of `min_replicas` replicas or more, once their models are loaded. Says meanwhile why it waits.

        Raises:
            ScheduleError: they could not be placed or loaded in time, or one died at start.
        """
        asked = {replica.ready.remote(): index for index, replica in enumerate(self.replicas)}
        started = time.monotonic()
        while asked:
            enough = len(self._pids) >= self.min_replicas
            left = started + timeout_s - time.monotonic()
            done, _ = ray.wait(list(asked), timeout=0 if enough else max(0.0, min(left, LOOK_EVERY_S)))
            for ref in done:
                index = asked.pop(ref)
                try:
                    self._pids[index] = cast(int, ray.get(ref))
                except ActorUnavailableError:
                    # Its node went away: Ray starts it elsewhere.
                    asked[self.replicas[index].ready.remote()] = index
                except RayActorError as error:
                    raise ScheduleError(f"an actor of the {self.role} pool died at start: {error}") from error
            if enough and not done:
                break
            if not enough and not done:
                self._explain(gave_up_after_s=timeout_s if left <= 0 else None)
        return list(self._pids.values())

    def _explain(self, *, gave_up_after_s: float | None) -> None:
        state = f"{self.role} pool: {len(self._pids)} of {len(self.replicas)} ready"
        if self.min_replicas < len(self.replicas):
            state += f", {self.min_replicas} to begin"
        waiting = Waiting(what=state, count=len(self.replicas) - len(self._pids), resources=self._resources, gang=False)
        line = waiting.line_now()
        if gave_up_after_s is None:
            say(line)
            return
        raise ScheduleError(
            f"the {self.role} pool was not ready after {gave_up_after_s:g} s: {line}; ask for less, add nodes, or raise"
            " cluster.start_timeout_s"
        )

    def stop(self) -> None:
        """End the actors of this pool."""
        for replica in self.replicas:
            ray.kill(replica)


def engine_pool(config: Config, *, path: str, role: str, replicas: int, min_replicas: int | None = None) -> Pool:
    """Actors that hold the model at `path` with the teacher's resources."""
    resources = role_resources(config, "teacher")
    options = actor_options(resources, resend=role != "teacher")
    remote = ray.remote(EngineActor).options(**options)
    use: Use = "annotate" if role == "teacher" else "generate"
    made = [remote.remote(config.teacher, path, use=use, seed=config.run.seed) for _ in range(replicas)]
    return Pool(role, made, min_replicas=min_replicas, resources=resources)


def teacher_pool(config: Config) -> Pool | None:
    """Actors that hold the teacher; None where the objective needs none."""
    if not config.distill.objective.needs_teacher:
        return None
    section = config.teacher
    return engine_pool(
        config, path=section.path, role="teacher", replicas=section.replicas, min_replicas=section.min_replicas
    )


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
    resources = role_resources(config, "judge")
    options = actor_options(resources, resend=False) | {"max_concurrency": section.merge_requests}
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
    made = [make() for _ in range(section.replicas)]
    return Pool("judge", made, min_replicas=section.min_replicas, resources=resources)


def judge_fingerprint(pool: Pool) -> str:
    """Identity of the judge that a ready pool holds."""
    client = pool.client()
    return cast(
        str, client.result(client.submit(Request(id="fingerprint", method="fingerprint", args=())), timeout_s=60)
    )


def rollout_pool(config: Config, *, load: Callable[[Config], VersionedEngine] | None = None) -> Pool | None:
    """Actors that write the student's responses while it trains, or answer what it is watched by; None where nobody asks.

    Args:
        load: makes the engine in each actor; the configured one, if not given.
    """
    section = config.rollouts.refresh
    if not config.needs_rollout_actors:
        return None
    resources = role_resources(config, "rollout")
    remote = ray.remote(RolloutActor).options(**actor_options(resources, resend=False))
    made = [remote.remote(config, load or student_engine) for _ in range(section.replicas)]
    return Pool("rollout", made, min_replicas=section.min_replicas, resources=resources)
