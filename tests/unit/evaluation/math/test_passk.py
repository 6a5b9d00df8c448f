from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb

import pytest

from vcrd_ray.evaluation.math.passk import Samples, mean_at_k, mean_mean_at_k, mean_pass_at_k, pass_at_k


@pytest.mark.parametrize("num_samples", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(num_samples: int) -> None:
    for num_correct in range(num_samples + 1):
        for k in range(1, num_samples + 1):
            draws = list(combinations(range(num_samples), k))
            share = sum(min(draw) < num_correct for draw in draws) / len(draws)
            samples = Samples(num_samples=num_samples, num_correct=num_correct)
            assert pass_at_k(samples, k) == pytest.approx(share, abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(10_000, 1, 100), (10_000, 3, 64), (100_000, 99_999, 1), (1_000_000, 1, 8)])
def test_pass_at_k_is_exact_for_many_samples(n: int, c: int, k: int) -> None:
    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
    assert pass_at_k(Samples(num_samples=n, num_correct=c), k) == float(exact)


def test_pass_at_one_and_mean_at_k_are_the_share() -> None:
    samples = Samples(num_samples=7, num_correct=3)
    assert pass_at_k(samples, 1) == mean_at_k(samples, 4) == 3 / 7


def test_items_count_alike_whatever_their_number_of_samples() -> None:
    items = [Samples(num_samples=2, num_correct=2), Samples(num_samples=8, num_correct=0)]
    assert mean_pass_at_k(items, 2) == mean_mean_at_k(items, 1) == 0.5


@pytest.mark.parametrize("k", [0, 6])
def test_more_draws_than_samples_are_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k} of 5 samples"):
        pass_at_k(Samples(num_samples=5, num_correct=1), k)


def test_more_correct_than_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="3 correct of 2"):
        Samples(num_samples=2, num_correct=3)


def test_no_items_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no items"):
        mean_pass_at_k([], 1)
