"""Packing branches: what each token reads, where it stands, what it sees; and that a model then computes the same."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2Model

from vcrd_ray.judges.attention import TREE_ATTENTION, AttentionKind, flex_length, tree_attention
from vcrd_ray.judges.packed_trees import (
    PackedTrees,
    Tree,
    branch_positions,
    pack,
)
from vcrd_ray.models.packing import rows_within_budget

CPU = torch.device("cpu")


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def tree(trunk: np.ndarray, branches: list[tuple[int, list[int]]], own: list[int], other: list[int]) -> Tree:
    """A tree of branches given as (trunk tokens seen, ids)."""
    return Tree(
        trunk=trunk,
        branch_ids=ints(*(i for _, ids in branches for i in ids)),
        branch=ints(*(b for b, (_, ids) in enumerate(branches) for _ in ids)),
        num_seen=ints(*(seen for seen, ids in branches for _ in ids)),
        trunk_index=ints(*own),
        branch_index=ints(*other),
    )


def two_trees() -> list[Tree]:
    """The module's own picture; then a branch of two tokens and one that sees the whole trunk."""
    return [
        tree(ints(10, 11, 12, 13, 14), [(3, [93]), (4, [94])], [2, 3, 4], [2, 5, 6]),
        tree(ints(20, 21, 22), [(1, [95, 96]), (3, [97])], [1, 2], [4, 5]),
    ]


def two_rows() -> PackedTrees:
    return pack(two_trees(), [[0], [1]], device=CPU)


def test_ids_and_positions_of_a_worked_example() -> None:
    packed = two_rows()
    assert packed.ids.tolist() == [[10, 11, 12, 13, 14, 93, 94], [20, 21, 22, 95, 96, 97, 0]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4], [0, 1, 2, 1, 2, 3, 0]]
    assert packed.trunk_index.tolist() == [2, 3, 4, 8, 9]
    assert packed.branch_index.tolist() == [2, 5, 6, 11, 12]


def test_mask_of_a_worked_example() -> None:
    sees = two_rows().sees().int().tolist()
    assert sees[0] == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [1, 1, 1, 1, 0, 0, 1],
    ]
    assert sees[1] == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0],
        [1, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


def test_trees_in_one_row_do_not_see_each_other() -> None:
    packed, apart = pack(two_trees(), [[1, 0]], device=CPU, round_up=lambda length: 16), two_rows().sees()
    assert packed.ids.shape == (1, 16)
    assert packed.trunk_index.tolist() == [8, 9, 10, 1, 2] and packed.branch_index.tolist() == [8, 11, 12, 4, 5]
    expected = torch.eye(16, dtype=torch.bool)
    expected[:6, :6], expected[6:13, 6:13] = apart[1, :6, :6], apart[0]
    assert torch.equal(packed.sees()[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_is_additive_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    mask = two_rows().additive_mask(dtype)
    assert mask.dtype == dtype and mask.shape == (2, 1, 7, 7)
    assert set(mask.flatten().tolist()) == {0.0, torch.finfo(dtype).min}


def test_path_is_what_leads_to_a_token() -> None:
    second = two_trees()[1]
    assert [second.path(i).tolist() for i in range(len(second))] == [
        [20],
        [20, 21],
        [20, 21, 22],
        [20, 95],
        [20, 95, 96],
        [20, 21, 22, 97],
    ]


@st.composite
def trees(draw: st.DrawFn) -> list[Tree]:
    """1 to 4 trees, all ids different from padding's 0."""
    token = st.integers(1, 99)
    drawn = []
    for _ in range(draw(st.integers(1, 4))):
        trunk = draw(st.lists(token, min_size=1, max_size=8))
        branch = st.tuples(st.integers(1, len(trunk)), st.lists(token, min_size=1, max_size=3))
        branches = draw(st.lists(branch, max_size=6))
        size = len(trunk) + sum(len(ids) for _, ids in branches)
        reads = draw(st.lists(st.integers(0, size - 1), max_size=5))
        drawn.append(tree(ints(*trunk), branches, reads, reads[::-1]))
    return drawn


@given(trees(), st.integers(1, 40), st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_token_sees_exactly_what_leads_to_it(drawn: list[Tree], budget: int, in_one_row: bool) -> None:
    sizes = [len(t) for t in drawn]
    rows = rows_within_budget(sizes, budget) if in_one_row else [[i] for i in range(len(drawn))]
    packed = pack(drawn, rows, device=CPU)
    sees, found = packed.sees(), 0
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            for index in range(len(drawn[i])):
                keys = sees[r, start + index].nonzero()[:, 0]
                assert packed.ids[r, keys].tolist() == drawn[i].path(index).tolist()
                assert packed.position_ids[r, keys].tolist() == list(range(len(keys)))
                found += 1
            start += len(drawn[i])
    assert found == int((packed.ids != 0).sum())
    for name, index in (("trunk_index", packed.trunk_index), ("branch_index", packed.branch_index)):
        wanted = [t.path(int(i))[-1] for t in drawn for i in getattr(t, name)]
        assert packed.ids.flatten()[index].tolist() == wanted


@pytest.mark.parametrize(
    ("token", "proposal", "has_branch"),
    [(5, 6, True), (5, 5, False), (1, 6, False), (5, 1, False), (1, 2, False), (1, 1, False)],
)
def test_only_two_different_plain_tokens_need_a_branch(token: int, proposal: int, has_branch: bool) -> None:
    assert branch_positions(ints(token), ints(proposal), {1, 2}).tolist() == [has_branch]


def test_without_special_tokens_every_difference_is_a_branch() -> None:
    assert branch_positions(ints(1, 2, 3), ints(1, 0, 4), ()).tolist() == [False, True, True]


# --- the same model gives the same hidden states --------------------------------------------------


def random_backbone() -> Qwen2Model:
    """Weights large enough that every key and every position matters."""
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        attn_implementation=TREE_ATTENTION,
    )
    torch.manual_seed(0)
    return Qwen2Model(config).eval()


@torch.no_grad()
def error(kind: AttentionKind, packed: PackedTrees, *, reference: str = TREE_ATTENTION) -> float:
    """Largest difference of a hidden state to a separate forward, over all tokens of the example."""
    backbone = random_backbone()
    attend = tree_attention(kind, packed, dtype=torch.float32)
    hidden = backbone(packed.ids, position_ids=packed.position_ids, trees=attend).last_hidden_state
    assert bool(torch.isfinite(hidden).all())
    backbone.set_attn_implementation(reference)
    errors = []
    for s, one in enumerate(two_trees()):
        for index in range(len(one)):
            alone = backbone(torch.from_numpy(one.path(index)).long()[None]).last_hidden_state[0, -1]
            errors.append((hidden[s, index] - alone).abs().max().item())
    return max(errors)


KINDS: list[AttentionKind] = ["dense", "flex", "two_stream"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reference", [TREE_ATTENTION, "eager", "sdpa"])
def test_every_token_equals_a_separate_forward(kind: AttentionKind, reference: str) -> None:
    """Also against the model's own attentions, which know nothing of trees."""
    assert error(kind, two_rows(), reference=reference) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_one_too_far_breaks_exactness(kind: AttentionKind) -> None:
    packed = two_rows()
    packed.position_ids[0, 5] += 1
    assert error(kind, packed) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("field", "row", "column", "change"), [("branch_start", 0, 6, -1), ("trunk_stop", 0, 5, 1)])
def test_a_visible_sibling_or_trajectory_token_breaks_exactness(
    kind: AttentionKind, field: str, row: int, column: int, change: int
) -> None:
    packed = two_rows()
    changed = getattr(packed, field).clone()
    changed[row, column] += change
    assert error(kind, dataclasses.replace(packed, **{field: changed})) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_without_its_own_first_token_breaks_exactness(kind: AttentionKind) -> None:
    packed = two_rows()
    changed = packed.branch_start.clone()
    changed[1, 4] += 1
    assert error(kind, dataclasses.replace(packed, branch_start=changed)) > 1e-2


def test_few_lengths_are_compiled_for_and_little_is_padding() -> None:
    lengths = [flex_length(n) for n in range(1, 16385)]
    assert all(length % 128 == 0 and length >= n for n, length in enumerate(lengths, 1))
    assert len(set(lengths)) == 14 and max(length / n for n, length in enumerate(lengths, 1) if n > 512) < 1.5
