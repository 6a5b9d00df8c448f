"""Actors on nodes, and what nodes cost."""

from __future__ import annotations

import pytest

from vcrd_ray.planning.placing import Offer, RoleAsk, bill, place

HEAD = Offer(name="head", count=1, always=1, resources={"CPU": 0})
GPU = Offer(name="gpu", count=2, always=0, resources={"CPU": 8, "GPU": 2})
CPU = Offer(name="cpu", count=1, always=0, resources={"CPU": 8})


def ask(role: str, count: int, **resources: float) -> RoleAsk:
    return RoleAsk(role=role, count=count, resources=resources)


def test_a_node_is_filled_before_another_is_brought() -> None:
    found = place([ask("student", 2, CPU=1, GPU=1)], [HEAD, GPU, CPU])
    assert found.nodes == {"head": 1, "gpu": 1}
    assert found.by_role == {"student": {"gpu": 1}} and found.actors == {"student": {"gpu": 2}}


def test_an_actor_without_gpu_stays_off_nodes_with_gpus_while_there_is_room_elsewhere() -> None:
    assert place([ask("data", 1, CPU=8)], [GPU, CPU]).nodes == {"cpu": 1}


def test_what_has_no_room_is_counted() -> None:
    assert place([ask("student", 5, CPU=1, GPU=1)], [HEAD, GPU, CPU]).missing == {"student": 1}


def test_a_bill_is_nodes_times_prices_times_hours() -> None:
    found = bill({"head": 1, "gpu": 2}, {"head": 0.5, "gpu": 3.0, "cpu": 9.0}, hours=2.0)
    assert (found.per_hour, found.run, found.unpriced) == (6.5, 13.0, ())


def test_no_price_is_ever_made_up() -> None:
    found = bill({"head": 1, "gpu": 2}, {"gpu": 3.0}, hours=2.0)
    assert (found.per_hour, found.run, found.unpriced) == (None, None, ("head",))


def test_a_run_of_unknown_length_has_a_price_an_hour_only() -> None:
    found = bill({"gpu": 1}, {"gpu": 3.0}, hours=None)
    assert found.per_hour == pytest.approx(3.0) and found.run is None
