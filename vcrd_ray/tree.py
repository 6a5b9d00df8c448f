"""A trunk and its one-token branches, packed in one row. Knows nothing of models or judges.

A causal pass over a trajectory gives the judge's score of each of its tokens at once. The other
model's proposal at response position t is one extra token, a *leaf*, at the end of the same row: it
sees the trunk before t and itself and stands at the position of y_t, so the model computes for it
what a separate forward over (prefix, proposal) would. Nothing sees a leaf, so the trunk is what it
would be alone. One pass over n + K tokens replaces K passes.

    row         p0 p1 y0 y1 y2 | a1 a2 | padding       a1 proposed instead of y1, a2 instead of y2
    position     0  1  2  3  4 |  3  4 |  0  0

Trunk tokens stand at the index that is their position, so one rule gives the whole mask: a token at
position i sees the keys of index below i, and itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int

from vcrd_ray.types import IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedTrees:
    """S trajectories with their leaves, padded on the right to L tokens.

    N is the number of response positions of all trajectories; K of them have a leaf. *Row order* is
    all positions of the first trajectory, then all of the second, and so on. Flat indices point
    into the S * L tokens.
    """

    ids: Int[torch.Tensor, "S L"]
    position_ids: Int[torch.Tensor, "S L"]
    mask: Float[torch.Tensor, "S 1 L L"]
    """Additive: 0 where a query sees a key, the lowest number of the dtype elsewhere. Never
    boolean: eager attention adds booleans as 0 and 1 and is silently wrong."""
    trunk_index: Int[torch.Tensor, " N"]
    """Flat index of each response token, row order."""
    leaf_index: Int[torch.Tensor, " K"]
    """Flat index of each leaf, row order."""
    leaf_row: Int[torch.Tensor, " K"]
    """Which of the N rows each leaf is the alternative of."""
    num_tokens: int
    """Prompt, response and leaf tokens; padding not counted."""


def leaf_positions(response: IntArray, candidate: IntArray, special_ids: Collection[int]) -> BoolArray:
    """Where a candidate needs a leaf. [T]

    Not where it is the trajectory's own token, whose score is there already; not where either is a
    special token, which a judge never learnt to score.
    """
    special = np.fromiter(special_ids, dtype=np.int64)
    plain = ~(np.isin(response, special) | np.isin(candidate, special))
    leaf: BoolArray = plain & (response != candidate)
    return leaf


def pack(
    *,
    prompts: Sequence[IntArray],
    responses: Sequence[IntArray],
    candidates: Sequence[IntArray],
    leaves: Sequence[BoolArray],
    dtype: torch.dtype,
    device: torch.device,
) -> PackedTrees:
    """Pack S >= 1 trajectories.

    Args:
        prompts: judge prompt ids, [S] of [P_s].
        responses: trajectory ids, [S] of [T_s].
        candidates: the alternative at each response position, [S] of [T_s]; read at leaves only.
        leaves: which positions get a leaf, [S] of [T_s].
        dtype: what the model computes attention in, which the mask must share.
        device: where the tensors go.
    """
    parents = [np.flatnonzero(leaf) for leaf in leaves]
    sizes = [len(p) + len(r) + len(k) for p, r, k in zip(prompts, responses, parents, strict=True)]
    shape = (len(sizes), max(sizes))
    # Padding is token 0 at position 0, which sees only itself. Any token would do: nothing sees it.
    ids = np.zeros(shape, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    trunk_index, leaf_index, leaf_row = [], [], []
    first_row = 0
    for s, (prompt, response, candidate, parent, size) in enumerate(
        zip(prompts, responses, candidates, parents, sizes, strict=True)
    ):
        trunk = len(prompt) + len(response)
        ids[s, :size] = np.concatenate([prompt, response, candidate[parent]])
        position_ids[s, :size] = np.concatenate([np.arange(trunk), len(prompt) + parent])
        offset = s * shape[1]
        trunk_index.append(offset + np.arange(len(prompt), trunk))
        leaf_index.append(offset + np.arange(trunk, size))
        leaf_row.append(first_row + parent)
        first_row += len(response)

    def to_tensor(array: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(device)

    positions = to_tensor(position_ids)
    return PackedTrees(
        ids=to_tensor(ids),
        position_ids=positions,
        mask=additive_mask(positions, dtype),
        trunk_index=to_tensor(np.concatenate(trunk_index)),
        leaf_index=to_tensor(np.concatenate(leaf_index)),
        leaf_row=to_tensor(np.concatenate(leaf_row)),
        num_tokens=sum(sizes),
    )


def additive_mask(position_ids: Int[torch.Tensor, "S L"], dtype: torch.dtype) -> Float[torch.Tensor, "S 1 L L"]:
    """A query at position i sees the keys of index below i and itself, so no row is empty (NaN)."""
    index = torch.arange(position_ids.shape[1], device=position_ids.device)
    sees = (index < position_ids[:, :, None]) | (index == index[:, None])
    mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def batches_within_budget(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of trajectories that share a forward: neighbours in length, so with little padding.

    No batch holds more than `max_tokens` tokens, padding included, except that a trajectory longer
    than that is a batch of its own. Longest first: what needs most memory fails first.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        # The first of a batch is its longest, the length that all are padded to.
        if batches and sizes[batches[-1][0]] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
