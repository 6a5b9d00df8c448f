"""Which sequences share a forward or a line, within a budget of tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vcrd_ray.models.packing import batches_within_budget, rows_within_budget


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 120))
def test_batches_hold_every_sequence_once_and_keep_the_budget(sizes: list[int], budget: int) -> None:
    batches = batches_within_budget(sizes, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        padded = max(sizes[i] for i in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


def test_batches_are_of_neighbours_in_length_longest_first() -> None:
    assert batches_within_budget([3, 9, 4, 9, 1], 18) == [[1, 3], [2, 0, 4]]


def test_a_sequence_over_the_budget_goes_alone() -> None:
    assert batches_within_budget([2, 30, 2], 10) == [[1], [0, 2]]


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 120))
def test_rows_hold_every_sequence_once_and_keep_the_budget(sizes: list[int], budget: int) -> None:
    lines = rows_within_budget(sizes, budget)
    assert sorted(i for line in lines for i in line) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in line) <= budget or len(line) == 1 for line in lines)


def test_rows_are_filled_first_fit_longest_first() -> None:
    assert rows_within_budget([3, 9, 4, 9, 1], 12) == [[1, 0], [3, 4], [2]]
