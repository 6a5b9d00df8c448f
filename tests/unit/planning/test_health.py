"""Reports of nodes, made by hand, and what is found in them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vcrd_ray.planning.health import (
    GIB,
    Clock,
    Finding,
    Gpu,
    NodeReport,
    check_clocks,
    check_disk,
    check_exposure,
    check_gpus,
    check_memory,
    check_storage,
    check_stores,
    check_versions,
)

VERSIONS = {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "ray": "2.60.0",
    "transformers": "5.19.0",
    "vllm": None,
    "deepspeed": "0.19.8",
    "peft": "0.21.2",
    "vcrd-ray": "0.1.0",
    "source": "abc",
}
GOOD = NodeReport(
    versions=VERSIONS,
    gpus=(Gpu(name="L4", bytes=24 * GIB),),
    memory_bytes=64 * GIB,
    shm_free_bytes=20 * GIB,
    disk_free_bytes=100 * GIB,
    auth_mode="",
)
ROLES = {"student": ["a"], "teacher": ["a", "b"]}


def with_version(package: str, version: str | None) -> NodeReport:
    return replace(GOOD, versions={**VERSIONS, package: version})


def worst(found: list[Finding]) -> str:
    return max((f.severity for f in found), key=("ok", "warning", "error").index)


def test_equal_nodes_are_fine_even_where_builds_differ() -> None:
    reports = {"a": GOOD, "b": with_version("torch", "2.13.0+cu130")}
    assert worst(check_versions(reports, ROLES, vllm_roles=[])) == "ok"


@pytest.mark.parametrize("package", ["python", "torch", "ray", "vcrd-ray", "source"])
def test_a_version_that_differs_is_named_with_both_nodes(package: str) -> None:
    (found,) = check_versions({"a": GOOD, "b": with_version(package, "9.9")}, ROLES, vllm_roles=[])
    assert found.severity == "error" and "9.9 on b" in found.what and f"{VERSIONS[package]}".split("+")[0] in found.what


def test_a_package_may_be_missing_only_where_no_role_needs_it() -> None:
    assert worst(check_versions({"a": GOOD, "b": with_version("deepspeed", None)}, ROLES, vllm_roles=[])) == "ok"
    (found,) = check_versions({"a": with_version("deepspeed", None), "b": GOOD}, ROLES, vllm_roles=[])
    assert found.severity == "error" and found.what == "deepspeed is not installed on a, where a student may land"
    (found,) = check_versions({"a": GOOD, "b": GOOD}, ROLES, vllm_roles=["teacher"])
    assert found.what == "vllm is not installed on a, b, where a teacher may land"


@pytest.mark.parametrize(("need", "severity"), [(20, "ok"), (23, "warning"), (25, "error")])
def test_a_role_is_held_against_the_smallest_gpu_it_may_land_on(need: int, severity: str) -> None:
    large = replace(GOOD, gpus=(Gpu(name="H200", bytes=140 * GIB),))
    assert worst(check_gpus("student", need * GIB, {"a": large, "b": GOOD}, {"a": 1, "b": 1})) == severity


def test_gpus_that_only_the_scheduler_sees_are_an_error() -> None:
    (found,) = check_gpus("student", GIB, {"a": GOOD}, {"a": 4})
    assert found.severity == "error" and "the scheduler counts 4 GPUs on a, nvidia-smi 1" in found.what


def test_host_memory_and_disk_are_compared_with_what_is_needed() -> None:
    assert check_memory("a", 10 * GIB, GOOD) == []
    assert worst(check_memory("a", 65 * GIB, GOOD)) == "error"
    assert check_disk("a", need_bytes=90 * GIB, report=GOOD) == []
    assert worst(check_disk("a", need_bytes=99 * GIB, report=GOOD)) == "warning"
    assert worst(check_disk("a", need_bytes=101 * GIB, report=GOOD)) == "error"


def test_an_object_store_must_hold_what_is_in_flight_and_fit_in_shared_memory() -> None:
    assert check_stores("a", store_bytes=10 * GIB, need_bytes=GIB, report=GOOD) == []
    (small,) = check_stores("a", store_bytes=GIB, need_bytes=2 * GIB, report=GOOD)
    assert "lower distill.prefetch" in small.cure
    (slow,) = check_stores("a", store_bytes=30 * GIB, need_bytes=GIB, report=GOOD)
    assert "--shm-size" in slow.cure


def test_storage_is_shared_when_each_node_sees_what_every_node_wrote() -> None:
    written: dict[str, str | None] = {"a": None, "b": None}
    both = {"a": True, "b": True}
    assert worst(check_storage(written, {"a": both, "b": both}, directory="/runs")) == "ok"
    (found,) = check_storage(written, {"a": both, "b": {"a": False, "b": True}}, directory="/runs")
    assert found.severity == "error" and found.what == "b does not see in /runs what a wrote"


def test_a_node_that_cannot_write_is_named_with_its_reason() -> None:
    found = check_storage({"a": None, "b": "Permission denied"}, {"a": {"a": True}}, directory="/runs")
    assert [f.what for f in found] == ["b cannot write to /runs: Permission denied"]


def test_a_clock_is_off_only_by_what_the_round_trip_cannot_explain() -> None:
    slow_answer = Clock(sent_s=100, there_s=109, received_s=110)
    assert slow_answer.skew_s == 0 and worst(check_clocks({"a": slow_answer})) == "ok"
    ahead, behind = Clock(sent_s=100, there_s=107, received_s=101), Clock(sent_s=100, there_s=90, received_s=101)
    assert (ahead.skew_s, behind.skew_s) == (6, 10)
    assert [f.severity for f in check_clocks({"a": ahead, "b": behind})] == ["warning", "warning"]


@pytest.mark.parametrize(
    ("dashboard", "address", "modes", "severity"),
    [
        ("127.0.0.1:8265", "10.0.0.1", ("", ""), "ok"),
        (None, "10.0.0.1", ("", ""), "ok"),
        ("0.0.0.0:8265", "10.0.0.1", ("", ""), "warning"),
        ("0.0.0.0:8265", "10.0.0.1", ("token", "token"), "ok"),
        ("127.0.0.1:8265", "8.8.8.8", ("", ""), "error"),
        ("127.0.0.1:8265", "10.0.0.1", ("token", ""), "error"),
    ],
)
def test_who_can_reach_the_cluster_without_a_token(
    dashboard: str | None, address: str, modes: tuple[str, str], severity: str
) -> None:
    found = check_exposure(
        dashboard=dashboard, addresses={"a": address}, auth_modes=dict(zip(("here", "a"), modes, strict=True))
    )
    assert worst(found) == severity
