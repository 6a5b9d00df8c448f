"""Nodes of a running cluster against what a distillation asks of them -> findings. Asks no node, knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vcrd_ray.config import Config
from vcrd_ray.errors import ModelError
from vcrd_ray.planning import health, host, memory
from vcrd_ray.planning.estimate import read_shapes, role_items
from vcrd_ray.planning.health import Finding, NodeReport
from vcrd_ray.planning.node_types import read_offers
from vcrd_ray.planning.placing import Offer, RoleAsk, place
from vcrd_ray.planning.rates import Shapes


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of the cluster, as the scheduler knows it."""

    id: str
    name: str
    """For people; two nodes of one host have different ones."""
    address: str
    resources: Mapping[str, float]


def eligible(ask: RoleAsk, nodes: Sequence[Node]) -> list[Node]:
    """Nodes that an actor of a role may land on."""
    return [
        node for node in nodes if all(node.resources.get(name, 0) >= amount for name, amount in ask.resources.items())
    ]


def check_room(
    asks: Sequence[RoleAsk], nodes: Sequence[Node], *, available: Mapping[str, float], cluster: Path | None
) -> list[Finding]:
    """Whether there is room for all actors: now, or once the autoscaler has brought what it may.

    Args:
        available: what nobody uses now, of the whole cluster.
        cluster: cluster file with the nodes that the autoscaler may bring.

    Raises:
        ConfigError: there is no room now, and `cluster` is no cluster file.
    """
    missing = place(asks, _offers(nodes)).missing
    if not missing:
        return [_ok("placement", "all actors have room"), *_in_use(asks, available)]
    said = ", ".join(f"{count} x {role}" for role, count in missing.items())
    if cluster is not None and not place(asks, read_offers(cluster)).missing:
        return [_ok("placement", f"no room yet for {said}; {cluster.name} lets the autoscaler bring it")]
    what = f"no room for {said} on this cluster" + (f", nor on all nodes of {cluster.name}" if cluster else "")
    cure = "add nodes, ask for less, or start nodes with the custom resources that cluster.pools separate needs"
    if cluster is None:
        cure += "; if an autoscaler brings them, give its --cluster-file"
    return [Finding(severity="error", check="placement", what=what, cure=cure)]


def _in_use(asks: Sequence[RoleAsk], available: Mapping[str, float]) -> list[Finding]:
    asked: dict[str, float] = {}
    for ask in asks:
        for name, amount in ask.resources.items():
            asked[name] = asked.get(name, 0) + ask.count * amount
    free = {name: available.get(name, 0) for name in asked}
    short = [f"{free[name]:g} of {need:g} {name}" for name, need in asked.items() if free[name] < need]
    if not short:
        return []
    what = f"free now: {', '.join(short)}; the run would wait for other work"
    return [Finding(severity="warning", check="placement", what=what, cure="end other jobs, or wait for them")]


def check_sizes(
    config: Config, asks: Sequence[RoleAsk], nodes: Sequence[Node], reports: Mapping[str, NodeReport]
) -> list[Finding]:
    """GPUs, host memory, object stores and disks against the estimates of the plan.

    Args:
        reports: by the node's id; of nodes that gave one.
    """
    try:
        shapes = read_shapes(config)
    except ModelError as error:
        return [Finding(severity="warning", check="sizes", what=f"not compared: {error}", cure="give plan.shapes")]
    found = [finding for ask in asks for finding in _gpus(config, ask, eligible(ask, nodes), reports, shapes)]
    placed = place(asks, _offers(nodes)).actors
    small: list[Finding] = []
    for node in nodes:
        if node.id in reports:
            counts = {role: actors.get(node.id, 0) for role, actors in placed.items()}
            small += _node_sizes(config, node, reports[node.id], counts, shapes)
    return found + (small or [_ok("sizes", "memory, object stores and disks have room")])


def _node_sizes(
    config: Config, node: Node, report: NodeReport, counts: Mapping[str, int], shapes: Shapes
) -> list[Finding]:
    """Memory, object store and disk of a node with so many actors of each role."""
    store = int(node.resources.get("object_store_memory", 0))
    need = sum(count * host.host_bytes(config, role, shapes) for role, count in counts.items()) + store
    flight = host.in_flight(config, shapes.teacher)
    in_store = counts.get("student", 0) * flight.per_rank
    if counts.get("teacher"):
        in_store = max(in_store, flight.all_ranks * counts["teacher"] // config.teacher.replicas)
    return [
        *health.check_memory(node.name, need, report),
        *health.check_stores(node.name, store_bytes=store, need_bytes=in_store, report=report),
        *health.check_disk(node.name, need_bytes=_disk_bytes(config, shapes), report=report),
    ]


def _disk_bytes(config: Config, shapes: Shapes) -> int:
    """Checkpoints and the exported model."""
    run = config.distill
    learnt = memory.trainable(shapes.student, lora=run.lora, train_head=run.train_head)
    width = memory.dtype_bytes(config.student.dtype)
    # A checkpoint has weights in the model's type and three numbers in float32 for each that is learnt.
    return (run.keep_checkpoints + 1) * learnt * (width + 12) + shapes.student.parameters * width


def _gpus(
    config: Config, ask: RoleAsk, nodes: Sequence[Node], reports: Mapping[str, NodeReport], shapes: Shapes
) -> list[Finding]:
    """GPUs of the nodes that a role may land on."""
    if not ask.resources.get("GPU"):
        return []
    named = {node.name: reports[node.id] for node in nodes if node.id in reports}
    sizes = [gpu.bytes for report in named.values() for gpu in report.gpus]
    # What vLLM takes depends on the GPU that it finds.
    hardware = getattr(config.plan, ask.role)
    if sizes:
        hardware = hardware.model_copy(update={"gpu_gib": min(sizes) / memory.GIB})
    found_here = config.model_copy(update={"plan": config.plan.model_copy(update={ask.role: hardware})})
    need = int(memory.total(role_items(found_here, ask.role, shapes)) / min(1.0, ask.resources["GPU"]))
    return health.check_gpus(ask.role, need, named, {node.name: node.resources.get("GPU", 0) for node in nodes})


def _offers(nodes: Sequence[Node]) -> list[Offer]:
    return [Offer(name=node.id, count=1, always=1, resources=node.resources) for node in nodes]


def _ok(check: str, what: str) -> Finding:
    return Finding(severity="ok", check=check, what=what)
