"""What configurations ask, held against what cluster files offer."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from deploy.check import Ask, main, placeholders, problems, stages, unplaced
from jobs.cli import load_config
from tests.unit.deploy.files import CONFIGS, KUBERAY, LAUNCHER, ROOT
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError
from vcrd_ray.planning.node_types import NodeType, read_node_types

PAPER = ROOT / "jobs" / "configs" / "paper" / "qwen2.5-math-7b-to-1.5b.yaml"


@cache
def config_of(path: Path, *options: str) -> Config:
    return load_config("pipeline", "", ["--config", str(path), *options])[0]


@pytest.mark.parametrize("cluster", [*LAUNCHER, *KUBERAY], ids=lambda path: path.stem)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_cluster_can_carry_every_shipped_config(config: Path, cluster: Path) -> None:
    assert problems(config_of(config), read_node_types(cluster)) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "neither a cluster file"),
        ("", "neither a cluster file"),
        ("available_node_types: {head: {max_workers: 1}}\nhead_node_type: head", "no 'resources'"),
        ("available_node_types: {head: ~}\nhead_node_type: head", "not of the form of a cluster file"),
        ("available_node_types: {a: {max_workers: many, resources: {}}}\nhead_node_type: head", "not of the form"),
        ("available_node_types: {head: {resources: [1]}}\nhead_node_type: head", "not of the form"),
        ("kind: RayCluster\nspec: {headGroupSpec: {}, workerGroupSpecs: []}", "not of the form"),
        ("kind: RayCluster\nspec: []", "neither|not of the form"),
        ("head_node_type: a\nhead_node_type: b", "head_node_type stands twice"),
        ("a: [", "not valid YAML: line 1"),
    ],
)
def test_a_file_that_is_no_cluster_file_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        read_node_types(tmp_path / "c.yaml")
    assert "\n" not in str(error.value) and "c.yaml" in str(error.value)


def test_a_config_that_asks_too_much_is_told_where_and_how_much_there_is() -> None:
    asked = config_of(PAPER, "--student.ranks", "16", "--teacher.replicas", "3")
    found = problems(asked, read_node_types(ROOT / "cluster.yaml"))
    student = "16 x student (4 CPU, 1 GPU, 1 student each), and there is room for 8 at most"
    assert found == [
        f"sft asks for {student}",
        "rollouts asks for 6 x teacher (4 CPU, 1 GPU, 1 teacher each), and there is room for 4 at most",
        f"distill asks for {student}",
    ]


def test_offline_rollouts_ask_for_engines_of_both_models_at_once() -> None:
    (engines, _) = stages(config_of(PAPER))["rollouts"]
    assert (engines.role, engines.count) == ("teacher", 4)


def test_a_stage_that_is_skipped_asks_for_nothing() -> None:
    assert "sft" not in stages(config_of(PAPER, "--sft.skip", "true"))


def test_an_actor_never_straddles_two_nodes() -> None:
    nodes = [NodeType(name="small", count=4, resources={"CPU": 8, "GPU": 1})]
    two = Ask(role="teacher", count=1, resources={"CPU": 1, "GPU": 2})
    assert unplaced([two], nodes) == [(two, 0)]
    assert unplaced([two], [NodeType(name="big", count=1, resources={"CPU": 8, "GPU": 2})]) == []


def test_actors_without_gpu_leave_the_nodes_with_gpus_to_those_that_need_them() -> None:
    gpu = NodeType(name="gpu", count=1, resources={"CPU": 4, "GPU": 1})
    cpu = NodeType(name="cpu", count=1, resources={"CPU": 4})
    asks = [
        Ask(role="data", count=4, resources={"CPU": 1}),
        Ask(role="teacher", count=1, resources={"CPU": 4, "GPU": 1}),
    ]
    assert unplaced(asks, [gpu, cpu]) == []


def test_what_is_to_be_filled_in_is_found_and_remarks_about_it_are_not() -> None:
    assert placeholders("a: CHANGE_ME # what\nb: 1 # CHANGE_ME one day\n# CHANGE_ME\n") == [
        "line 1: a: CHANGE_ME # what"
    ]


def test_the_program_ends_with_one_exactly_when_something_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(PAPER)]) == 0
    shown = capsys.readouterr().out
    assert "4 x student (4 CPU, 1 GPU, 1 student each)" in shown and "ami-CHANGE_ME" in shown
    large = tmp_path / "large.yaml"
    large.write_text("cluster: {pools: separate}\njudge: {type: value_head, replicas: 9}\n")
    assert main(["--config", str(large)]) == 1
    assert "does not fit: distill asks for 9 x judge" in capsys.readouterr().out


def test_another_kind_of_file_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"demo\.yaml: neither a cluster file"):
        read_node_types(ROOT / "jobs" / "configs" / "demo.yaml")
