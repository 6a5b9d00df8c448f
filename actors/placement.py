"""Where each role runs: the one place that turns config into Ray resources. Knows no models."""

from __future__ import annotations

import math
from typing import Any, Literal

from vcrd_ray.config import Config
from vcrd_ray.config.models import ActorPool

Role = Literal["student", "teacher", "judge", "rollout"]


def pool_section(config: Config, role: Role) -> ActorPool:
    """What is configured of a role's pool."""
    match role:
        case "teacher":
            return config.teacher
        case "judge":
            return config.judge
        case "rollout":
            return config.rollouts.refresh
        case "student":
            raise ValueError("ranks of the student are no pool")


def role_resources(config: Config, role: Role) -> dict[str, float]:
    """What one actor of a role asks the scheduler for, as Ray resource names."""
    if role == "student":
        threads, gpus = config.student.threads, config.student.gpus_per_rank
    else:
        section = pool_section(config, role)
        threads, gpus = section.threads, section.gpus_per_replica
    resources: dict[str, float] = {"CPU": float(threads)}
    if gpus:
        resources["GPU"] = gpus
    if config.cluster.pools == "separate":
        resources[role] = 1.0
    return resources


def actor_options(resources: dict[str, float], *, resend: bool = True) -> dict[str, Any]:
    """`ray.remote` options for stateless actors: restarted for ever, requests answered as they become ready.

    Out of order, because a request whose arguments are still being computed must not hold up one that is urgent.

    Args:
        resources: see `role_resources`.
        resend: Ray sends what an actor did not answer again, to that same actor, however long its restart takes and
            also if the actor died of it. Not for pools that are asked through a client, which chooses another.
    """
    return {
        "num_cpus": resources["CPU"],
        "num_gpus": resources.get("GPU", 0),
        "resources": {name: amount for name, amount in resources.items() if name not in ("CPU", "GPU")},
        "max_restarts": -1,
        "max_task_retries": -1 if resend else 0,
        "allow_out_of_order_execution": True,
    }


def placement_table(config: Config) -> list[tuple[Role, int, dict[str, float]]]:
    """(role, number of actors, resources of each) of a distillation run."""
    table: list[tuple[Role, int, dict[str, float]]] = [
        ("student", config.student.ranks, role_resources(config, "student"))
    ]
    if config.distill.objective.needs_teacher:
        table.append(("teacher", config.teacher.replicas, role_resources(config, "teacher")))
    if config.distill.objective.needs_judge:
        table.append(("judge", config.judge.replicas, role_resources(config, "judge")))
    if config.needs_rollout_actors:
        table.append(("rollout", config.rollouts.refresh.replicas, role_resources(config, "rollout")))
    return table


def local_cluster_resources(config: Config) -> dict[str, Any]:
    """`ray.init` arguments for a cluster on this machine that always has room for what the config asks.

    CPUs are only counted, not bound: more may be offered than there are, and actors then share them.
    """
    roles: list[tuple[Role, int]] = [
        ("student", config.student.ranks),
        ("teacher", config.teacher.replicas),
        ("judge", config.judge.replicas),
        ("rollout", config.rollouts.refresh.replicas if config.needs_rollout_actors else 0),
    ]
    engines = config.evaluate.replicas * config.teacher.threads
    cpus = sum(count * role_resources(config, role)["CPU"] for role, count in roles)
    return {
        # Ray Train's controller and Ray Data's tasks need room beside the roles.
        "num_cpus": math.ceil(cpus + engines) + 4,
        "resources": {role: float(count) for role, count in roles if count},
    }
