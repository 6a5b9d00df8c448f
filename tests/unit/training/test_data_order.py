"""Which examples make which update."""

from hypothesis import given
from hypothesis import strategies as st

from vcrd_ray.training.data_order import DataOrder


def order(n: int = 10, batch: int = 4, micro: int = 2, ranks: int = 1, seed: int = 0) -> DataOrder:
    return DataOrder(num_examples=n, batch_size=batch, micro_batch_size=micro, ranks=ranks, seed=seed)


@given(n=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_example_is_used_once_before_any_is_used_twice(n: int, batch: int, seed: int) -> None:
    o = DataOrder(num_examples=n, batch_size=batch, micro_batch_size=batch, ranks=1, seed=seed)
    stream = [i for u in range(3 * n // batch + 1) for i in o.order_of(u)]
    for start in range(0, len(stream) - n + 1, n):
        assert sorted(stream[start : start + n]) == list(range(n))


def test_ranks_and_micro_batches_cut_the_same_update() -> None:
    whole = order().order_of(3)
    assert [i for m in range(2) for i in order().micro_batch(3, m, 0)] == whole
    two = order(ranks=2)
    assert [i for r in range(2) for i in two.micro_batch(3, 0, r)] == whole
    assert two.num_micro_batches == 1


def test_an_update_can_be_asked_for_in_any_order() -> None:
    forwards, backwards = order(), order()
    ahead = [forwards.order_of(u) for u in range(12)]
    assert [backwards.order_of(u) for u in reversed(range(12))] == ahead[::-1]


def test_epochs_and_seeds_shuffle_differently() -> None:
    assert order(n=8, batch=8, micro=8).order_of(0) != order(n=8, batch=8, micro=8).order_of(1)
    assert order(seed=0).order_of(0) != order(seed=1).order_of(0)


def test_length_of_a_run() -> None:
    assert order(n=50_000, batch=128, micro=8).num_updates(epochs=2, num_updates=None) == 781
    assert order(n=3, batch=4, micro=4).num_updates(epochs=1, num_updates=None) == 1
    assert order().num_updates(epochs=1, num_updates=7) == 7
