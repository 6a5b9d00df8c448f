"""Cluster files -> the kinds of node that they offer. Knows no cloud, and no cluster that runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcrd_ray.config.yaml_files import read_yaml_documents
from vcrd_ray.errors import ConfigError
from vcrd_ray.planning.placing import Offer


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """Nodes that are alike."""

    name: str
    count: int
    """As many as there can be."""
    resources: Mapping[str, float]
    """What each offers."""


def read_node_types(path: Path) -> list[NodeType]:
    """Node types of a launcher's cluster file, or of a RayCluster or RayJob manifest.

    Raises:
        ConfigError: it is none of these.
    """
    try:
        found = _node_types(read_yaml_documents(path))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"{path}: not of the form of a cluster file: {what}; compare the shipped one") from None
    if found is None:
        raise ConfigError(f"{path}: neither a cluster file of Ray's launcher nor a RayCluster or RayJob")
    return found


def _node_types(documents: list[Any]) -> list[NodeType] | None:
    for content in documents:
        match content:
            case {"available_node_types": dict(types), "head_node_type": head}:
                return [
                    NodeType(
                        name=str(name),
                        count=1 if name == head else int(t["max_workers"]),
                        resources={str(what): float(amount) for what, amount in t["resources"].items()},
                    )
                    for name, t in types.items()
                ]
            case {"kind": "RayCluster", "spec": spec} | {"kind": "RayJob", "spec": {"rayClusterSpec": spec}}:
                groups = [{"groupName": "head", "maxReplicas": 1, **spec["headGroupSpec"]}, *spec["workerGroupSpecs"]]
                return [
                    NodeType(name=str(g["groupName"]), count=int(g["maxReplicas"]), resources=_pod_resources(g))
                    for g in groups
                ]
    return None


def read_offers(path: Path) -> list[Offer]:
    """Node types that a plan may place actors on; the head is up whatever runs.

    Raises:
        ConfigError: it is no cluster file.
    """
    types = read_node_types(path)
    return [
        Offer(name=t.name, count=t.count, always=1 if t.name == "head" else 0, resources=t.resources) for t in types
    ]


def _pod_resources(group: Mapping[str, Any]) -> dict[str, float]:
    """What Ray offers on a pod of this group."""
    start = group.get("rayStartParams", {})
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    resources = {"CPU": float(start.get("num-cpus", limits["cpu"]))}
    if "nvidia.com/gpu" in limits:
        resources["GPU"] = float(limits["nvidia.com/gpu"])
    # A JSON string in quotes of its own, because KubeRay pastes it into a shell command.
    own: dict[str, float] = json.loads(json.loads(start.get("resources", '"{}"')))
    return resources | own
