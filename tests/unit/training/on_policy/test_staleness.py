"""Which version writes for which update: the bound, and that what an update needs is always there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcrd_ray.config.refresh import RefreshSection
from vcrd_ray.method.schedule import Action, plan
from vcrd_ray.training.data_order import DataOrder
from vcrd_ray.training.on_policy.staleness import StalenessRule

RULES = st.builds(StalenessRule, every=st.integers(1, 7), ahead=st.integers(0, 9))


@pytest.mark.parametrize(
    ("every", "ahead", "versions"),
    [(1, 0, [0, 1, 2, 3, 4, 5]), (1, 2, [0, 0, 0, 1, 2, 3]), (2, 1, [0, 0, 0, 2, 2, 4]), (3, 0, [0, 0, 0, 3, 3, 3])],
)
def test_the_table_of_small_rules(every: int, ahead: int, versions: list[int]) -> None:
    rule = StalenessRule(every=every, ahead=ahead)
    assert [rule.version(update) for update in range(6)] == versions


@given(rule=RULES, update=st.integers(0, 200))
def test_no_response_is_older_than_the_bound_or_younger_than_its_lead(rule: StalenessRule, update: int) -> None:
    staleness = update - rule.version(update)
    assert staleness <= rule.every + rule.ahead - 1
    assert staleness >= min(update, rule.ahead)


@given(rule=RULES, num_updates=st.integers(1, 60), every=st.integers(1, 20))
def test_what_an_update_needs_is_published_before_it_and_still_there(
    rule: StalenessRule, num_updates: int, every: int
) -> None:
    there: set[int] = set()
    checkpoints: list[int] = []
    at_checkpoint: dict[int, set[int]] = {}
    for update in range(num_updates):
        version = rule.version(update)
        assert version == 0 or version in there
        done = update + 1
        if rule.is_published(done, num_updates=num_updates):
            there.add(done)
        if done % every == 0:
            checkpoints = [*checkpoints, done][-2:]
        there &= rule.kept(done, checkpoints)
        for checkpoint in checkpoints:
            at_checkpoint[checkpoint] = {v for v in there if v <= checkpoint}
            # Going on from it must find everything that was out by then and is learnt from later.
            wanted = {rule.version(u) for u in range(checkpoint, num_updates)}
            assert {v for v in wanted if 0 < v <= checkpoint} <= at_checkpoint[checkpoint]


@given(rule=RULES)
def test_only_versions_that_somebody_learns_from_are_published(rule: StalenessRule) -> None:
    num_updates = 40
    published = {done for done in range(1, num_updates + 1) if rule.is_published(done, num_updates=num_updates)}
    assert published == {rule.version(update) for update in range(num_updates)} - {0}


@given(rule=RULES, num_micro=st.integers(1, 3), prefetch=st.integers(1, 9), overlap=st.booleans())
def test_the_schedule_asks_nothing_of_an_update_whose_version_is_not_out(
    rule: StalenessRule, num_micro: int, prefetch: int, overlap: bool
) -> None:
    done = 2
    operations = list(
        plan(
            first_update=2,
            num_updates=12,
            num_micro=num_micro,
            overlap=overlap,
            prefetch=prefetch,
            needs=rule.version,
        )
    )
    asked: set[tuple[int, int]] = set()
    for op in operations:
        if op.action is Action.REQUEST_TEACHER:
            assert rule.version(op.update) <= done
            asked.add((op.update, op.micro))
        if op.action is Action.FORWARD:
            assert (op.update, op.micro) in asked
        if op.action is Action.STEP:
            done = op.update + 1
    assert done == 12


def test_an_epoch_is_as_many_updates_as_fit_in_the_pairs() -> None:
    assert StalenessRule.of(RefreshSection(every="epoch"), epoch_updates=9) == StalenessRule(every=9, ahead=1)


@given(
    num_examples=st.integers(1, 40),
    micro=st.integers(1, 3),
    num_micro=st.integers(1, 3),
    ranks=st.integers(1, 3),
    update=st.integers(0, 30),
)
def test_earlier_uses_of_an_example_are_those_of_the_order(
    num_examples: int, micro: int, num_micro: int, ranks: int, update: int
) -> None:
    size = micro * num_micro * ranks
    order = DataOrder(num_examples=num_examples, batch_size=size, micro_batch_size=micro, ranks=ranks, seed=3)
    example = order.order_of(update)[0]
    found = list(order.uses_before(update, example))
    wanted = [
        (earlier, rank)
        for earlier in range(update)
        for m in range(num_micro)
        for rank in range(ranks)
        for index in order.micro_batch(earlier, m, rank)
        if index == example
    ]
    assert sorted(found) == sorted(wanted)
    assert [earlier for earlier, _ in found] == sorted((earlier for earlier, _ in found), reverse=True)
