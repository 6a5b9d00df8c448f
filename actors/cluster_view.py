"""What Ray says of a cluster's nodes, of what has no place on them, and of its autoscaler. Knows no roles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.core.generated import autoscaler_pb2
from ray.experimental.internal_kv import internal_kv_get_gcs_client

_RPC_TIMEOUT_S = 5

Shape = Mapping[str, float]
"""What one actor or rank asks for, as Ray resource names."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that is there."""

    total: Shape
    free: Shape


@dataclass(frozen=True, kw_only=True)
class ClusterView:
    """What a cluster is, and what it cannot place, at one moment. Of all jobs on it: Ray does not tell them apart."""

    nodes: Sequence[Node]
    actors: Sequence[tuple[Shape, int]] = ()
    """Actors and tasks without a place: what each asks for, and how many there are."""
    bundles: Sequence[tuple[Shape, int]] = ()
    """The same of groups that are placed together."""
    infeasible: Sequence[Shape] = ()
    """What the autoscaler has no node type for."""
    starting: Mapping[str, int]
    """Nodes on their way, by node type."""
    failed: Mapping[str, str]
    """Why the last node of a type could not be started."""


def look() -> ClusterView:
    """The cluster as it is now.

    Raises:
        RpcError: it does not answer.
    """
    # ray.autoscaler.v2.sdk.get_cluster_status reads the same reply, but leaves out what is infeasible (Ray 2.60).
    reply = autoscaler_pb2.GetClusterStatusReply()
    reply.ParseFromString(internal_kv_get_gcs_client().get_cluster_status(timeout_s=_RPC_TIMEOUT_S))
    state, scaler = reply.cluster_resource_state, reply.autoscaling_state
    starting = Counter(node.ray_node_type_name for node in scaler.pending_instances)
    for request in scaler.pending_instance_requests:
        starting[request.ray_node_type_name] += request.count
    return ClusterView(
        nodes=[
            Node(total=dict(node.total_resources), free=dict(node.available_resources))
            for node in state.node_states
            if node.status != autoscaler_pb2.NodeStatus.DEAD
        ],
        actors=[(dict(r.request.resources_bundle), r.count) for r in state.pending_resource_requests],
        bundles=[
            (dict(bundle.resources_bundle), 1)
            for gang in state.pending_gang_resource_requests
            for bundle in _bundles(gang)
        ],
        infeasible=[dict(r.resources_bundle) for r in _infeasible(scaler)],
        starting=starting,
        failed={f.ray_node_type_name: f.reason for f in scaler.failed_instance_requests},
    )


def _infeasible(scaler: Any) -> Iterator[Any]:
    yield from scaler.infeasible_resource_requests
    for gang in scaler.infeasible_gang_resource_requests:
        yield from _bundles(gang)


def _bundles(gang: Any) -> Iterator[Any]:
    # A group may name alternatives: they ask for the same, on nodes with other labels.
    yield from gang.bundle_selectors[0].resource_requests if gang.bundle_selectors else gang.requests
