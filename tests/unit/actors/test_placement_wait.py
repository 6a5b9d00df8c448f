"""What is said of actors that wait for room, from made-up clusters."""

from __future__ import annotations

from typing import Any

import pytest

from actors.cluster_view import ClusterView, Node
from actors.placement_wait import Waiting, explain_waiting_of, why
from vcrd_ray.config import Config

JUDGE = {"CPU": 1.0, "judge": 1.0}


def node(free: dict[str, float] | None = None, **total: float) -> Node:
    return Node(total=total, free=total if free is None else free)


def view(*nodes: Node, **more: Any) -> ClusterView:
    return ClusterView(nodes=nodes, **{"starting": {}, "failed": {}, **more})


def test_a_full_cluster_is_said_with_what_is_left_where_it_could_be_placed() -> None:
    full = view(node({"CPU": 3.0}, CPU=4.0, judge=1.0), node(CPU=64.0))
    assert why(JUDGE, full) == "the cluster is full: free CPU 3 of 4, judge 0 of 1"


def test_what_no_node_offers_is_named() -> None:
    cluster = view(node(CPU=8.0, GPU=1.0), node(CPU=8.0))
    assert why(JUDGE, cluster) == "no node offers 1 judge"
    assert why({"CPU": 1.0, "GPU": 2.0}, cluster) == "no node offers 2 GPU"


def test_what_nodes_offer_only_one_at_a_time_is_said_so() -> None:
    cluster = view(node(CPU=8.0), node(CPU=1.0, GPU=1.0))
    assert why({"CPU": 4.0, "GPU": 1.0}, cluster) == "no node offers 4 CPU, 1 GPU together"


def test_an_ask_that_the_autoscaler_has_no_node_type_for_is_said_so_whatever_else_it_starts() -> None:
    cluster = view(node(CPU=8.0), infeasible=[JUDGE], starting={"teacher": 1})
    assert why(JUDGE, cluster) == "no node type can give it"
    assert why(JUDGE, view(node({}, CPU=1.0, judge=1.0), infeasible=[JUDGE])).startswith("the cluster is full")


def test_nodes_on_their_way_are_told_by_type() -> None:
    cluster = view(node({}, CPU=1.0, judge=1.0), starting={"judge": 2, "cpu": 1})
    assert why(JUDGE, cluster) == "the autoscaler is starting 1 x cpu, 2 x judge"


def test_a_node_that_could_not_be_started_is_told_with_its_reason() -> None:
    cluster = view(node(CPU=1.0), failed={"judge": "no spot capacity"})
    assert why(JUDGE, cluster) == "the autoscaler could not start judge: no spot capacity"


@pytest.mark.parametrize(
    ("asked", "start"),
    [
        (
            {"actors": [(JUDGE, 5)]},
            "waiting for 2 x {CPU: 1, judge: 1} (judge pool: 1 of 3 ready): no node offers 1 judge",
        ),
        (
            {"actors": [(JUDGE, 1)]},
            "waiting for 1 x {CPU: 1, judge: 1} (judge pool: 1 of 3 ready): no node offers 1 judge",
        ),
        ({"actors": [({"CPU": 1.0}, 1)]}, "waiting for 2 actors (judge pool: 1 of 3 ready): placed and loading"),
        ({"bundles": [(JUDGE, 1)]}, "waiting for 2 actors (judge pool: 1 of 3 ready): placed and loading"),
    ],
    ids=["others ask the same", "one is placed", "others ask else", "a group asks"],
)
def test_only_what_has_no_place_is_counted(asked: dict[str, Any], start: str) -> None:
    waiting = Waiting(what="judge pool: 1 of 3 ready", count=2, resources=JUDGE, gang=False)
    assert waiting.line(view(node(CPU=1.0), **asked)) == start


def test_of_a_pool_whose_asks_are_not_known_nothing_is_claimed() -> None:
    waiting = Waiting(what="evaluation pool: 0 of 1 ready", count=1, resources={}, gang=False)
    assert waiting.line(view(node(CPU=1.0))) == "waiting for 1 actors (evaluation pool: 0 of 1 ready)"


def test_ranks_are_looked_for_among_groups_and_pools_among_actors() -> None:
    config = Config.model_validate({"cluster": {"pools": "separate"}, "student": {"ranks": 2}})
    asked = {waiting.what: (waiting.count, waiting.gang) for waiting in explain_waiting_of(config)}
    assert asked == {"student group": (2, True), "teacher pool": (1, False), "judge pool": (1, False)}


def test_pools_that_ask_for_the_same_are_told_together() -> None:
    config = Config.model_validate({"judge": {"type": "value_head", "replicas": 3}})
    asked = {waiting.what: (waiting.count, waiting.gang) for waiting in explain_waiting_of(config)}
    assert asked == {"student group": (1, True), "teacher pool or judge pool": (4, False)}


def test_a_pool_cannot_begin_with_more_actors_than_it_will_have() -> None:
    with pytest.raises(ValueError, match="min_replicas 3 is more than replicas 2: lower it"):
        Config.model_validate({"teacher": {"replicas": 2, "min_replicas": 3}})
