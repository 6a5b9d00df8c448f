"""Keyed random numbers and inverse-CDF sampling."""

import subprocess
import sys

import numpy as np
import torch

from vcrd_ray.sampling import sample_rows, stable_hash, uniforms


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


def test_a_number_depends_on_its_key_alone() -> None:
    whole = draw(np.arange(50))
    assert (whole[[7, 3, 40]] == draw(np.array([7, 3, 40]))).all()


def test_each_part_of_the_key_matters() -> None:
    base = draw(np.arange(100))
    others = [
        draw(np.arange(100), seed=1),
        draw(np.arange(100), stream="t"),
        draw(np.arange(100), update=1),
        draw(np.arange(100), rollout="q"),
    ]
    for other in others:
        assert not (base == other).any() and abs(np.corrcoef(base, other)[0, 1]) < 0.4


def test_hashes_are_the_same_in_every_process() -> None:
    program = "from vcrd_ray.sampling import stable_hash; print(stable_hash('tiny-2-0'))"
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


def test_float64_input_is_left_as_it_was() -> None:
    logp = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    before = logp.clone()
    sample_rows(logp, torch.tensor([0.3], dtype=torch.float64))
    assert logp.equal(before)
