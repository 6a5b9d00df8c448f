"""Nodes made by hand against what a distillation asks of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError
from vcrd_ray.planning.fit import Node, check_room, check_sizes, eligible
from vcrd_ray.planning.health import GIB, Finding, Gpu, NodeReport
from vcrd_ray.planning.placing import RoleAsk
from vcrd_ray.planning.tokenizers import check_loading

STUDENT = RoleAsk(role="student", count=1, resources={"CPU": 1, "GPU": 1})
TEACHER = RoleAsk(role="teacher", count=2, resources={"CPU": 2})
SHIPPED = Path(__file__).parents[3] / "cluster.yaml"


def node(name: str, **resources: float) -> Node:
    return Node(id=f"id-{name}", name=name, address="10.0.0.1", resources=resources)


def report(*, memory_gib: float = 64, gpu_gib: float | None = None, disk_gib: float = 100) -> NodeReport:
    return NodeReport(
        versions={},
        gpus=() if gpu_gib is None else (Gpu(name="L4", bytes=int(gpu_gib * GIB)),),
        memory_bytes=int(memory_gib * GIB),
        shm_free_bytes=20 * GIB,
        disk_free_bytes=int(disk_gib * GIB),
        auth_mode="",
    )


def severities(found: list[Finding], check: str) -> list[str]:
    return [finding.severity for finding in found if finding.check == check]


GPU_NODE = node("gpu", CPU=8, GPU=1, object_store_memory=2 * GIB)
CPU_NODE = node("cpu", CPU=4, object_store_memory=2 * GIB)
ALL_FREE = {"CPU": 12, "GPU": 1}


def test_an_actor_may_land_where_all_that_it_asks_is_offered() -> None:
    assert eligible(STUDENT, [GPU_NODE, CPU_NODE]) == [GPU_NODE]
    assert eligible(TEACHER, [GPU_NODE, CPU_NODE]) == [GPU_NODE, CPU_NODE]


def test_room_that_others_use_now_is_a_warning() -> None:
    asks, nodes = [STUDENT, TEACHER], [GPU_NODE, CPU_NODE]
    assert [f.severity for f in check_room(asks, nodes, available=ALL_FREE, cluster=None)] == ["ok"]
    ok, warning = check_room(asks, nodes, available={"CPU": 12}, cluster=None)
    assert (ok.severity, warning.severity) == ("ok", "warning") and "0 of 1 GPU" in warning.what


def test_a_role_without_room_is_an_error_unless_the_autoscaler_may_bring_its_node(tmp_path: Path) -> None:
    (error,) = check_room([STUDENT], [CPU_NODE], available=ALL_FREE, cluster=None)
    assert error.severity == "error" and "no room for 1 x student" in error.what and "--cluster-file" in error.cure
    brought = RoleAsk(role="student", count=1, resources={"GPU": 1, "student": 1})
    (ok,) = check_room([brought], [CPU_NODE], available=ALL_FREE, cluster=SHIPPED)
    assert ok.severity == "ok" and "cluster.yaml lets the autoscaler bring it" in ok.what
    never = RoleAsk(role="student", count=1, resources={"GPU": 64})
    (error,) = check_room([never], [CPU_NODE], available=ALL_FREE, cluster=SHIPPED)
    assert "nor on all nodes of cluster.yaml" in error.what
    with pytest.raises(ConfigError, match="no such file"):
        check_room([never], [CPU_NODE], available=ALL_FREE, cluster=tmp_path / "cluster.yaml")


def test_memory_disk_and_gpus_are_compared_where_a_node_gave_its_report() -> None:
    asks, nodes = [STUDENT, TEACHER], [GPU_NODE, CPU_NODE]
    good = {GPU_NODE.id: report(gpu_gib=24), CPU_NODE.id: report()}
    found = check_sizes(Config(), asks, nodes, good)
    assert {finding.severity for finding in found} == {"ok"}
    assert severities(check_sizes(Config(), asks, nodes, {**good, GPU_NODE.id: report(gpu_gib=0.001)}), "gpus") == [
        "error"
    ]
    assert severities(check_sizes(Config(), asks, nodes, {**good, CPU_NODE.id: report(disk_gib=0)}), "disk") != []
    tight = check_sizes(Config(), asks, nodes, {GPU_NODE.id: report(gpu_gib=24, memory_gib=0.1)})
    assert severities(tight, "memory") == ["error"], "the node that gave no report is left out"


def test_sizes_of_unknown_models_are_not_compared() -> None:
    config = Config.model_validate({"teacher": {"path": "/no/such/model"}})
    (warning,) = check_sizes(config, [STUDENT], [GPU_NODE], {})
    assert warning.severity == "warning" and warning.what.startswith("not compared: ")


def test_a_model_that_a_node_cannot_load_or_has_otherwise_is_an_error() -> None:
    assert check_loading("teacher", "m", {"a": ("1", ""), "b": ("1", "")}) == []
    missing, differs = check_loading("teacher", "m", {"a": ("1", ""), "b": ("2", ""), "c": (None, "no such file")})
    assert missing.what == "teacher m cannot be loaded on c: no such file"
    assert differs.what == "teacher m: nodes have different tokenizers"
