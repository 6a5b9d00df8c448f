"""Attention over packed trees, three ways with one result. Knows nothing of judges.

A Hugging Face model whose attention implementation is `TREE_ATTENTION` hands each layer's queries, keys and values to the
`trees` it was called with; called without, it attends causally, which is what packed attention is checked against.

- dense: causal attention over the columns that are trunk in every row, an additive mask for the queries behind them. Any
  device.
- flex: a block mask for flex_attention, compiled on CUDA. No dense mask in memory, and blocks nobody sees are skipped.
- two_stream: causal attention over the trunk, once more with the branches as queries, and what each branch sees of itself
  merged in through the log-sum-exp. No mask at all; pays where most positions have a branch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from vcrd_ray.errors import ModelError
from vcrd_ray.judges.packed_trees import PackedTrees

_MOST_LENGTHS = 64
TREE_ATTENTION = "vcrd_trees"
"""Name of the attention implementation, registered when this module is imported."""

AttentionKind = Literal["dense", "flex", "two_stream"]


class TreeAttention(Protocol):
    """How one packed batch attends. Made once a batch, used in every layer."""

    def __call__(
        self,
        query: Float[Tensor, "S h L d"],
        key: Float[Tensor, "S h L d"],
        value: Float[Tensor, "S h L d"],
        scale: float,
    ) -> Float[Tensor, "S h L d"]:
        """Attention output; rows of padding hold any finite number."""


def tree_attention(kind: AttentionKind, packed: PackedTrees, *, dtype: torch.dtype) -> TreeAttention:
    """The attention of a batch; `two_stream` needs one tree a row."""
    match kind:
        case "dense":
            return _dense(packed, dtype)
        case "flex":
            return _flex(packed)
        case "two_stream":
            return _two_stream(packed)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    trees: TreeAttention | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The signature that Hugging Face models call; gives [S, L, h, d]."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if trees is None:
        output = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    else:
        output = trees(query, key, value, scale)
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(TREE_ATTENTION, _attention)


def _dense(packed: PackedTrees, dtype: torch.dtype) -> TreeAttention:
    column = torch.arange(packed.ids.shape[1], device=packed.ids.device)
    plain = ((packed.trunk_start == 0) & (packed.trunk_stop == column)).all(0)
    width = int(plain.int().cumprod(0).sum())
    mask = packed.additive_mask(dtype, first=width)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        trunk = scaled_dot_product_attention(
            query[:, :, :width], key[:, :, :width], value[:, :, :width], is_causal=True, scale=scale
        )
        rest = scaled_dot_product_attention(query[:, :, width:], key, value, attn_mask=mask, scale=scale)
        return torch.cat([trunk, rest], 2)

    return attend


def _flex(packed: PackedTrees) -> TreeAttention:
    rows, length = packed.ids.shape
    cuda = packed.ids.is_cuda
    trunk_start, trunk_stop, branch_start = packed.trunk_start, packed.trunk_stop, packed.branch_start

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        trunk = (trunk_start[row, query] <= key) & (key < trunk_stop[row, query])
        return trunk | ((branch_start[row, query] <= key) & (key <= query))

    make: Any
    run: Any
    make, run = _compiled_flex() if cuda else (create_block_mask, flex_attention)
    blocks: BlockMask = make(sees, rows, None, length, length, device=packed.ids.device)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output: Tensor = run(query, key, value, block_mask=blocks, scale=scale)
        return output

    return attend


@cache
def _compiled_flex() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The block mask made without the dense one, and the kernel: one for each length of `flex_length`."""
    limits: Any = torch._dynamo.config
    # Beyond its limit the compiler would go on with the unfused attention, whose scores alone are [h, L, L].
    limits.recompile_limit = max(limits.recompile_limit, _MOST_LENGTHS)
    return torch.compile(create_block_mask), torch.compile(flex_attention, dynamic=False)


def flex_length(length: int) -> int:
    """The next of 128, 256, 384, 512, 768, 1024, ...: whole blocks, few lengths to compile for, little padding."""
    power = max(128, 1 << (length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 and power > 256 else power


def _two_stream(packed: PackedTrees) -> TreeAttention:
    width = int(packed.trunk_stop.max()) + 1
    row, column = _branch_tokens(packed)
    seen = packed.trunk_stop[row, column] - 1
    lanes = _lanes(row * width + seen)
    own = packed.branch_start[row, column]
    depth = int((column - own).max()) + 1 if len(column) else 0

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        output = torch.zeros_like(query)
        trunk_key, trunk_value = key[:, :, :width], value[:, :, :width]
        output[:, :, :width] = _causal(query[:, :, :width], trunk_key, trunk_value, scale)[0]
        for lane in lanes:
            # The query of a branch that sees n trunk tokens takes the place of trunk token n - 1.
            at, place = (row[lane], column[lane]), (row[lane], seen[lane])
            asked = torch.zeros_like(trunk_key)
            own_query = query.transpose(1, 2)[at]
            asked.transpose(1, 2)[place] = own_query
            found, log_sum = _causal(asked, trunk_key, trunk_value, scale)
            parts, logs = [found.transpose(1, 2)[place].float()], [log_sum.transpose(1, 2)[place]]
            for step in range(depth):
                behind = own[lane] + step
                there = behind <= column[lane]
                behind = torch.minimum(behind, column[lane])
                score = (own_query * key.transpose(1, 2)[row[lane], behind]).float().sum(-1) * scale
                parts.append(value.transpose(1, 2)[row[lane], behind].float())
                logs.append(score.masked_fill(~there[:, None], -torch.inf))
            share = torch.stack(logs).softmax(0)
            merged = (share[..., None] * torch.stack(parts)).sum(0)
            output.transpose(1, 2)[at] = merged.to(output.dtype)
        return output

    return attend


def _branch_tokens(packed: PackedTrees) -> tuple[Tensor, Tensor]:
    """Row and column of every branch token that causal attention would not serve.

    A trunk token sees all columns up to itself; so does a branch that follows a whole trunk directly, and is served.
    """
    column = torch.arange(packed.ids.shape[1], device=packed.ids.device)
    inside = (packed.trunk_stop > 0) & (packed.trunk_stop != column)
    row, at = inside.nonzero(as_tuple=True)
    return row, at


def _lanes(places: Tensor) -> list[Tensor]:
    """Branch tokens split so that no two of a lane see equally much of the same trunk."""
    order = places.argsort(stable=True)
    sorted_places = places[order]
    first = torch.searchsorted(sorted_places, sorted_places)
    rank = torch.arange(len(places), device=places.device) - first
    return [order[rank == r] for r in range(int(rank.max()) + 1)] if len(places) else []


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Causal attention and the log-sum-exp of each query's scores. [S, h, L, d] and [S, h, L]"""
    if query.is_cuda:
        if query.dtype == torch.float32:
            raise ModelError(
                "judge.attention two_stream on a GPU needs judge.dtype bfloat16; use dense or flex for float32"
            )
        found = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, True, scale=scale)
    else:
        found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, True, scale=scale)
    return found[0], found[1].float()
