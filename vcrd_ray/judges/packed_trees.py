"""A trunk and its short branches, packed in one row. Knows nothing of models or judges.

A causal pass over a trajectory gives the judge's score of each of its tokens at once. What the other model proposes at
response position t is a *branch* at the end of the same row: it sees the trunk before t and itself and stands at the
position of y_t, so the model computes for it what a separate forward over (prefix, proposal) would. Nothing sees a branch
but itself, so the trunk is what it would be alone. One pass over n + K tokens replaces K passes.

    row         p0 p1 y0 y1 y2 | a1 a2 | padding       a1 proposed instead of y1, a2 instead of y2
    position     0  1  2  3  4 |  3  4 |  0

A branch may have several tokens (a proposal and a separator behind it), and a row several trees that do not see each
other. Two stretches of keys say what a token sees: the first tokens of its own tree's trunk, and its own branch up to
itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vcrd_ray.types import IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tree:
    """One trajectory as a judge reads it. Token indices count the trunk first, then all branches."""

    trunk: IntArray
    """Prompt and response, with what the judge's format puts between them. [n]"""
    branch_ids: IntArray
    """Tokens of all branches, one branch after the other. [b]"""
    branch: IntArray
    """Which branch each of them belongs to, ascending. [b]"""
    num_seen: IntArray
    """How many trunk tokens their branch sees. [b]"""
    trunk_index: IntArray
    """Index of the token at which the score of y_t is read. [T]"""
    branch_index: IntArray
    """Index of the token at which the proposal's is read; `trunk_index` where it has no branch. [T]"""

    def __len__(self) -> int:
        return len(self.trunk) + len(self.branch_ids)

    @property
    def num_positions(self) -> int:
        """How many positions a model needs to read it."""
        depth = np.arange(len(self.branch)) - np.searchsorted(self.branch, self.branch)
        return max(len(self.trunk), int((self.num_seen + depth + 1).max(initial=0)))

    def path(self, index: int) -> IntArray:
        """The ids that lead to one token, itself included: what a forward of its own is made over."""
        n = len(self.trunk)
        if index < n:
            return self.trunk[: index + 1]
        at = index - n
        first = int(np.searchsorted(self.branch, self.branch[at]))
        return np.concatenate([self.trunk[: self.num_seen[at]], self.branch_ids[first : at + 1]])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedTrees:
    """Trees in S rows, padded on the right to L tokens. N response positions in all, in the order of the trees."""

    ids: Int[Tensor, "S L"]
    position_ids: Int[Tensor, "S L"]
    trunk_start: Int[Tensor, "S L"]
    """Column where the trunk of the token's tree begins."""
    trunk_stop: Int[Tensor, "S L"]
    """Columns [trunk_start, trunk_stop) are seen; empty for padding."""
    branch_start: Int[Tensor, "S L"]
    """Columns [branch_start, own column] are seen: the own branch up to itself, or the token alone."""
    trunk_index: Int[Tensor, " N"]
    """Flat index into the S L tokens where each position's own token is read."""
    branch_index: Int[Tensor, " N"]
    """The same for its proposal."""

    def sees(self, *, first: int = 0) -> Bool[Tensor, "S q L"]:
        """Which keys (last) each query from column `first` on (before last) sees; no row is empty."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device)
        asking = slice(first, None)
        trunk = (self.trunk_start[:, asking, None] <= column) & (column < self.trunk_stop[:, asking, None])
        branch = (self.branch_start[:, asking, None] <= column) & (column <= column[asking, None])
        return trunk | branch

    def additive_mask(self, dtype: torch.dtype, *, first: int = 0) -> Float[Tensor, "S 1 q L"]:
        """0 where a query from column `first` on sees a key, the lowest number of the dtype elsewhere.

        Never boolean: eager attention adds booleans as 0 and 1 and is silently wrong.
        """
        sees = self.sees(first=first)
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
        return mask.masked_fill_(~sees, torch.finfo(dtype).min)[:, None]


def branch_positions(response: IntArray, proposal: IntArray, special_ids: Collection[int]) -> BoolArray:
    """Where a proposal needs a branch. [T]

    Not where it is the trajectory's own token, whose score is there already; not where either is a
    special token, which a judge never learnt to score.
    """
    special = np.fromiter(special_ids, dtype=np.int64)
    plain = ~(np.isin(response, special) | np.isin(proposal, special))
    needs_branch: BoolArray = plain & (response != proposal)
    return needs_branch


def pack(
    trees: Sequence[Tree],
    rows: Sequence[Sequence[int]],
    *,
    device: torch.device,
    round_up: Callable[[int], int] | None = None,
) -> PackedTrees:
    """Lay trees out in rows.

    Args:
        trees: at least one.
        rows: which trees each row holds, by index; every tree in one row.
        device: where the tensors go.
        round_up: the longest row's length -> L, so that few different lengths occur; None: that length.
    """
    longest = max(sum(len(trees[i]) for i in row) for row in rows)
    shape = (len(rows), longest if round_up is None else round_up(longest))
    # Padding is token 0 at position 0, which sees only itself. Any token would do: nothing sees it.
    ids, position_ids, trunk_start, trunk_stop = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    branch_start = np.tile(np.arange(shape[1]), (shape[0], 1))
    own: list[npt.NDArray[np.int64]] = [np.zeros(0, dtype=np.int64)] * len(trees)
    other = list(own)
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            tree, n = trees[i], len(trees[i].trunk)
            trunk, branches = slice(start, start + n), slice(start + n, start + len(tree))
            ids[r, trunk], ids[r, branches] = tree.trunk, tree.branch_ids
            first = np.searchsorted(tree.branch, tree.branch)
            position_ids[r, trunk] = np.arange(n)
            position_ids[r, branches] = tree.num_seen + np.arange(len(tree.branch)) - first
            trunk_start[r, trunk], trunk_start[r, branches] = start, start
            trunk_stop[r, trunk] = start + np.arange(n)
            trunk_stop[r, branches] = start + tree.num_seen
            branch_start[r, branches] = start + n + first
            own[i], other[i] = (
                r * shape[1] + start + index.astype(np.int64) for index in (tree.trunk_index, tree.branch_index)
            )
            start += len(tree)

    def to_tensor(array: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return PackedTrees(
        ids=to_tensor(ids),
        position_ids=to_tensor(position_ids),
        trunk_start=to_tensor(trunk_start),
        trunk_stop=to_tensor(trunk_stop),
        branch_start=to_tensor(branch_start),
        trunk_index=to_tensor(np.concatenate(own)),
        branch_index=to_tensor(np.concatenate(other)),
    )
