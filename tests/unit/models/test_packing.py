"""Batches by token budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vcrd_ray.models.packing import by_token_budget

LENGTHS = st.lists(st.integers(1, 50), max_size=40)


@given(lengths=LENGTHS, budget=st.integers(1, 400))
def test_every_prompt_is_in_one_batch_within_the_budget_or_alone(lengths: list[int], budget: int) -> None:
    batches = by_token_budget(lengths, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths=LENGTHS)
def test_what_fits_at_once_is_one_batch_in_its_order(lengths: list[int]) -> None:
    assert by_token_budget(lengths, None) == ([list(range(len(lengths)))] if lengths else [])
    assert by_token_budget(lengths, 50 * 40) == by_token_budget(lengths, None)


def test_like_lengths_share_a_batch() -> None:
    assert by_token_budget([9, 2, 10, 3, 2], 20) == [[2, 0], [3, 1, 4]]
