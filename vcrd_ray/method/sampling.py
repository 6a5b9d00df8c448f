"""Random numbers that are functions of a key, and exact sampling from rows of log-probabilities. Knows no models.

A number depends on (seed, stream, update, rollout, position) and on nothing else, so that neither batching nor the order
of work nor the number of ranks changes what is drawn.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int

_U64 = np.uint64
_GOLDEN = _U64(0x9E3779B97F4A7C15)


def stable_hash(text: str) -> int:
    """64 bits that depend on the text alone, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection on 64 bits whose output bits all depend on all input bits."""
    value = (value ^ (value >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> _U64(27))) * _U64(0x94D049BB133111EB)
    return value ^ (value >> _U64(31))


def uniforms(
    *,
    seed: int,
    stream: str,
    update: int,
    rollout_keys: npt.NDArray[np.uint64],
    positions: npt.NDArray[np.integer],
) -> npt.NDArray[np.float64]:
    """One number in the open interval (0, 1) for each (rollout, position). [n]

    Args:
        stream: what the numbers are for; streams are independent of each other.
        rollout_keys: `stable_hash` of each row's rollout id. [n]
        positions: [n]
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is what is meant
        state = np.full(len(positions), stable_hash(f"{seed}:{stream}:{update}"), dtype=np.uint64)
        for part in (rollout_keys.astype(np.uint64), positions.astype(np.uint64)):
            state = _mix((state ^ _mix(part + _GOLDEN)) + _GOLDEN)
    return _open_unit(state)


def _open_unit(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The middle of one of 2**52 cells of (0, 1). With one bit more the last middle would round to 1."""
    return ((bits >> _U64(12)).astype(np.float64) + 0.5) * 2.0**-52


def sample_rows(logp: Float[torch.Tensor, "n v"], uniform: Float[torch.Tensor, " n"]) -> Int[torch.Tensor, " n"]:
    """The token at which each row's cumulative probability first exceeds its uniform number; -1 where there is none. [n]

    Exact inverse-CDF sampling with sums in float64. A token of probability zero is never returned: the cumulative sum
    does not rise there. A row that is no distribution, with a NaN in it or nothing at all, has none: whoever reads the
    tokens back refuses it, so that nobody waits for the device here.
    """
    cumulative = logp.to(torch.float64, copy=True).exp_().cumsum_(dim=-1)
    # The sum of float32 probabilities is 1 only to rounding: scale the number, not the row. The largest number below 1
    # times the total still rounds to less than the total, so the index is always one of the row.
    total = cumulative[:, -1]
    drawn = torch.searchsorted(cumulative, uniform[:, None] * total[:, None], right=True)[:, 0]
    return torch.where(total.isfinite() & (total > 0), drawn, -1)
