"""Keyed random numbers and inverse-CDF sampling."""

import math
import subprocess
import sys

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vcrd_ray.method.sampling import _open_unit, sample_rows, stable_hash, uniforms


def draw(positions: np.ndarray, *, seed: int = 0, stream: str = "s", update: int = 0, rollout: str = "r") -> np.ndarray:
    keys = np.full(len(positions), stable_hash(rollout), dtype=np.uint64)
    return uniforms(seed=seed, stream=stream, update=update, rollout_keys=keys, positions=positions)


def test_numbers_are_uniform_on_the_open_unit_interval() -> None:
    numbers = draw(np.arange(200_000))
    assert numbers.min() > 0 and numbers.max() < 1
    counts, _ = np.histogram(numbers, 100, (0, 1))
    # Chi-square with 99 degrees of freedom: mean 99, standard deviation 14.
    assert ((counts - 2000) ** 2 / 2000).sum() < 99 + 5 * 14.1
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01


def test_neither_end_of_the_interval_is_ever_reached() -> None:
    lowest, highest = _open_unit(np.array([0, 2**64 - 1], dtype=np.uint64))
    assert 0 < lowest < 2.0**-52 and 1 - 2.0**-52 < highest < 1


@given(order=st.permutations(range(12)), cut=st.integers(0, 12))
def test_a_number_depends_on_its_key_alone(order: list[int], cut: int) -> None:
    keys = np.array([stable_hash(f"r{i % 3}") for i in range(12)], dtype=np.uint64)
    positions = np.arange(12) // 3

    def numbers(rows: list[int]) -> np.ndarray:
        return uniforms(seed=4, stream="s", update=2, rollout_keys=keys[rows], positions=positions[rows])

    whole = numbers(list(range(12)))
    assert len(set(whole)) == 12
    assert (np.concatenate([numbers(order[:cut]), numbers(order[cut:])]) == whole[order]).all()


def test_each_part_of_the_key_gives_independent_numbers() -> None:
    positions = np.arange(100_000)
    base = draw(positions)
    others = [
        draw(positions, seed=1),
        draw(positions, stream="t"),
        draw(positions, update=1),
        draw(positions, rollout="q"),
        draw(positions + 1),
    ]
    for other in others:
        # The standard error of a correlation of 100,000 independent pairs is 0.0032.
        assert not (base == other).any() and abs(np.corrcoef(base, other)[0, 1]) < 0.016


def test_hashes_are_the_same_in_every_process() -> None:
    program = "from vcrd_ray.method.sampling import stable_hash; print(stable_hash('tiny-2-0'))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(other) == stable_hash("tiny-2-0") != stable_hash("tiny-2-1")


def test_samples_follow_the_distribution() -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    uniform = torch.from_numpy(draw(np.arange(100_000)))
    drawn = sample_rows(p.log().expand(100_000, 4), uniform)
    shares = torch.bincount(drawn, minlength=4) / 100_000
    assert shares[1] == 0
    torch.testing.assert_close(shares, p, rtol=0, atol=0.006)


def test_no_number_however_extreme_leaves_the_support() -> None:
    logp = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert sample_rows(logp, torch.tensor([2.0**-54, 1 - 2.0**-53], dtype=torch.float64)).tolist() == [1, 1]


def test_a_number_on_the_border_belongs_to_the_token_after_it() -> None:
    logp = torch.tensor([[0.5, 0.0, 0.5]], dtype=torch.float64).log()
    below = math.nextafter(0.5, 0)
    assert [int(sample_rows(logp, torch.tensor([u], dtype=torch.float64))[0]) for u in (below, 0.5)] == [0, 2]


def test_the_largest_number_below_one_finds_a_token_whatever_the_total() -> None:
    totals = torch.linspace(0.4, 4.1, 100_000, dtype=torch.float64)
    logp = torch.stack([totals.log(), torch.full_like(totals, -torch.inf)], dim=1)
    assert (sample_rows(logp, torch.full_like(totals, 1 - 2.0**-53)) == 0).all()


@given(
    shares=st.lists(st.sampled_from([0.0, 1e-30, 1e-6, 0.3, 1.0]), min_size=1, max_size=30).filter(any),
    number=st.one_of(st.floats(2.0**-53, 1 - 2.0**-53), st.sampled_from([2.0**-53, 1 - 2.0**-53])),
)
def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_number(
    shares: list[float], number: float
) -> None:
    p = torch.tensor(shares, dtype=torch.float64)
    logp = (p / p.sum()).log()
    token = int(sample_rows(logp[None], torch.tensor([number], dtype=torch.float64))[0])
    cumulative = np.cumsum(np.exp(logp.numpy()))
    assert shares[token] > 0
    assert cumulative[token] >= number * (1 - 1e-12)
    assert token == 0 or cumulative[token - 1] <= number * (1 + 1e-12)


def test_float64_input_is_left_as_it_was() -> None:
    logp = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    before = logp.clone()
    sample_rows(logp, torch.tensor([0.3], dtype=torch.float64))
    assert logp.equal(before)
