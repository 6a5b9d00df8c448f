"""A run on several nodes that come and go: who lands where, what is lost, and that the student is the same."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.actors.conftest import make_config
from tests.actors.nodes import GrowingNodes, Nodes, wait_until
from tests.actors.test_distill_on_ray import assert_bitwise
from tests.conftest import write_rollouts
from vcrd_ray.config import Config

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.usefixtures("no_ray")]
IDLE = pytest.mark.skipif(
    os.environ.get("VCRD_FULL") != "1", reason="minutes with six nodes on one machine: set VCRD_FULL=1 on an idle one"
)
NUM_UPDATES = 24


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with Nodes() as made:
        yield made


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rollouts(tmp_path_factory.mktemp("data") / "rollouts", 24)


def config_of(run_dir: Path, rollouts: Path, *, checkpoint_every: int = 3, **sections: Any) -> Config:
    distill = {"num_updates": NUM_UPDATES, "checkpoint_every": checkpoint_every, "epochs": 10}
    pools = {"teacher": {"replicas": 2}, "judge": {"type": "value_head", "replicas": 2, "min_replicas": 1}}
    return make_config(run_dir, rollouts, distill=distill, **pools | sections)


@pytest.fixture(scope="module")
def undisturbed(rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Nodes() as nodes:
        for role in ("student", "teacher", "judge"):
            nodes.add(**{role: 1})
        run = nodes.start(config_of(folder, rollouts, teacher={"replicas": 1}))
        assert run.end() == 0, run.output[-4000:]
    return run.directory


@IDLE
def test_nodes_that_join_and_die_change_nothing_in_the_student(
    nodes: Nodes, rollouts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    student, first_judge = nodes.add(student=1), nodes.add(judge=1)
    teachers = [nodes.add(teacher=1), nodes.add(teacher=1)]
    run = nodes.start(config_of(tmp_path / "run", rollouts))
    wait_until(lambda: run.updates() >= 1, "the first update", timeout_s=240)
    assert nodes.placed("RayTrainWorker") == [student]
    assert nodes.placed("JudgeActor") == [first_judge], "one of two: there is no node for the other"
    assert nodes.placed("EngineActor") == sorted(teachers)

    took: dict[str, float] = {}
    with nodes.paused("RayTrainWorker"):
        second_judge = nodes.add(judge=1)
        wait_until(lambda: second_judge in nodes.placed("JudgeActor"), "the second judge")
    nodes.kill(first_judge)
    took["judge node"] = run.go_on(2)
    nodes.kill(teachers[0])
    took["teacher node"] = run.go_on(2)
    nodes.kill(student)
    other_student = nodes.add(student=1)
    took["student node"] = run.go_on()
    assert nodes.placed("RayTrainWorker") == [other_student]
    assert nodes.placed("JudgeActor") == [second_judge] and nodes.placed("EngineActor") == teachers[1:]
    assert run.end() == 0, run.output[-4000:]
    print({what: f"{seconds:.1f} s" for what, seconds in took.items()})
    assert_bitwise(run.directory, undisturbed)


@IDLE
def test_a_student_node_that_is_drained_saves_until_it_leaves(
    nodes: Nodes, rollouts: Path, undisturbed: Path, tmp_path: Path
) -> None:
    nodes.add(teacher=1, judge=1)
    drained = nodes.add(student=1)
    # No checkpoint is due before the end.
    run = nodes.start(config_of(tmp_path / "run", rollouts, teacher={"replicas": 1}, checkpoint_every=1000))
    wait_until(lambda: run.updates() >= 2, "the second update", timeout_s=240)
    other = nodes.add(student=1)
    with nodes.paused("RayTrainWorker"):
        nodes.drain(drained, deadline_s=10)
        time.sleep(6)  # Ray Train looks every five seconds
    done = [run.updates()]

    def moved() -> bool:
        done.append(run.updates())
        return nodes.placed("RayTrainWorker") == [other]

    wait_until(moved, "the group on the other node")
    saved = max(int(path.name.removeprefix("update-")) for path in (run.directory / "checkpoints").glob("update-*"))
    print(f"{done[0]} updates at the notice, {max(done)} when the node was left, {saved} of them kept")
    assert max(done) - 3 <= saved <= max(done) + 1
    nodes.kill(drained)
    assert run.end() == 0, run.output[-4000:]
    assert_bitwise(run.directory, undisturbed)


def test_a_pool_that_finds_no_room_says_why_and_gives_up_in_time(nodes: Nodes, rollouts: Path, tmp_path: Path) -> None:
    nodes.add(judge=1)
    nodes.add(student=1)
    config = config_of(
        tmp_path,
        rollouts,
        teacher={"replicas": 1, "threads": 64},
        cluster={"start_timeout_s": 14},
    )
    run = nodes.start(config)
    assert run.end() != 0
    assert "waiting for 1 x {CPU: 64, teacher: 1} (teacher pool: 0 of 1 ready): no node" in run.output
    assert "the teacher pool was not ready after 14 s" in run.output


def test_a_group_that_finds_no_room_says_why_and_gives_up_in_time(nodes: Nodes, rollouts: Path, tmp_path: Path) -> None:
    nodes.add(judge=1, teacher=1)
    config = config_of(tmp_path, rollouts, teacher={"replicas": 1}, cluster={"start_timeout_s": 14})
    run = nodes.start(config)
    assert run.end() != 0
    assert "(student group): no node offers 1 student" in run.output
    assert "the student group had no room for 14 s: 1 x {CPU: 1, student: 1}: no node offers 1 student" in run.output


@IDLE
def test_judge_nodes_come_when_they_are_asked_for_and_go_when_the_run_is_over(rollouts: Path, tmp_path: Path) -> None:
    with GrowingNodes(max_judges=2) as nodes:
        config = config_of(tmp_path, rollouts, teacher={"replicas": 1}, judge={"type": "value_head", "replicas": 2})
        run = nodes.start(config)
        wait_until(lambda: len(nodes.placed("JudgeActor")) == 2, f"judges on nodes: {run.output}", timeout_s=200)
        judges = [node["NodeID"] for node in nodes.alive() if "judge" in node["Resources"]]
        assert nodes.placed("JudgeActor") == sorted(judges) and len(judges) == 2
        assert run.end() == 0, run.output[-4000:]
        idle = wait_until(lambda: len(nodes.alive()) == 1, "judge nodes are gone")
        print(f"judge nodes were gone {idle:.1f} s after the run")
