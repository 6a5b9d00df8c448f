"""What each pool's actors are made of. Knows no requests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ray

from actors.placement import actor_options, role_resources
from actors.pools.pool import Pool
from actors.pools.transport import mark_running
from actors.roles.engine import EngineActor
from actors.roles.judge import JudgeActor
from actors.roles.rollout import RolloutActor, student_engine
from vcrd_ray.config import Config
from vcrd_ray.engines import Use, VersionedEngine
from vcrd_ray.judges import Judge
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.judges.requests import judged_at
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model


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


def rollout_pool(config: Config, *, load: Callable[[Config], VersionedEngine] | None = None) -> Pool | None:
    """Actors that write the student's responses while it trains, or answer what it is watched by; None: nobody asks.

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
