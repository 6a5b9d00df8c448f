"""The doctor on a real Ray of two nodes: all well, a run directory that is none, a role without room, a node that is silent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.cluster import worker_environment
from actors.probes import Silence, on_nodes
from jobs.ops import doctor
from vcrd_ray.config import Config
from vcrd_ray.planning.health import Finding

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.usefixtures("no_ray")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[list[str]]:
    """Node ids of a cluster of two raylets on loopback."""
    assert not ray.is_initialized(), "an earlier module left its Ray behind"
    store = 100 * 1024**2
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "object_store_memory": store, "include_dashboard": False},
    )
    cluster.add_node(num_cpus=4, object_store_memory=store)
    ray.init(
        address=cluster.address,
        runtime_env={"env_vars": {**worker_environment(), "PYTHONPATH": str(ROOT)}},
        log_to_driver=False,
    )
    try:
        cluster.wait_for_nodes()
        yield [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    finally:
        ray.shutdown()
        cluster.shutdown()


def config(run_dir: Path, **sections: object) -> Config:
    return Config.model_validate({"run": {"dir": run_dir}, **sections})


def errors(found: list[Finding]) -> list[str]:
    return [finding.what for finding in found if finding.severity == "error"]


def test_two_nodes_alike_have_no_errors_and_nothing_is_left_behind(two_nodes: list[str], tmp_path: Path) -> None:
    found = doctor.run(config(tmp_path / "run"))
    assert errors(found) == []
    assert {f.check for f in found} >= {"nodes", "placement", "versions", "storage", "models", "clocks", "exposure"}
    (storage,) = [f for f in found if f.check == "storage"]
    assert storage.severity == "ok" and "2 nodes" in storage.what
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_directory_that_cannot_be_written_is_named_for_each_node(two_nodes: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file in its place")
    found = [f for f in doctor.run(config(tmp_path / "run")) if f.check == "storage" and f.severity == "error"]
    assert len([f for f in found if "cannot write" in f.what]) == 2


def test_a_role_without_room_and_a_model_that_is_not_there_are_errors(two_nodes: list[str], tmp_path: Path) -> None:
    asked = config(tmp_path / "run", student={"threads": 5}, teacher={"path": str(tmp_path / "nothing")})
    found = errors(doctor.run(asked))
    assert any("no room for 1 x student" in what for what in found)
    assert len([what for what in found if "cannot be loaded on" in what]) == 2


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


def test_a_node_that_does_not_answer_in_time_says_so_and_the_others_are_heard(two_nodes: list[str]) -> None:
    one, other = two_nodes
    on_nodes(_sleep, {one: (0,), other: (0,)}, timeout_s=120)  # workers are started by now
    found = on_nodes(_sleep, {one: (0,), other: (600,)}, timeout_s=30)
    assert found == {one: "awake", other: Silence(why="no answer within 30 s")}
