"""Packing one-token branches: what each token reads, where it stands, what it sees."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2Config, Qwen2Model

from vcrd_ray.tree import PackedTrees, additive_mask, batches_within_budget, leaf_positions, pack

CPU = torch.device("cpu")


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int32)


def bools(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.bool_)


def two_trajectories(dtype: torch.dtype = torch.float32) -> PackedTrees:
    """The module's own picture, then a trajectory without prompt neighbours: P=1, T=2, one leaf."""
    return pack(
        prompts=[ints(10, 11), ints(20)],
        responses=[ints(12, 13, 14), ints(21, 22)],
        candidates=[ints(12, 93, 94), ints(95, 22)],
        leaves=[bools(0, 1, 1), bools(1, 0)],
        dtype=dtype,
        device=CPU,
    )


def test_ids_and_positions_of_a_worked_example() -> None:
    trees = two_trajectories()
    assert trees.ids.tolist() == [[10, 11, 12, 13, 14, 93, 94], [20, 21, 22, 95, 0, 0, 0]]
    assert trees.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4], [0, 1, 2, 1, 0, 0, 0]]
    assert trees.num_tokens == 11


def test_mask_of_a_worked_example() -> None:
    sees = (two_trajectories().mask[:, 0] == 0).int().tolist()
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
        [0, 0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_is_additive_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    mask = two_trajectories(dtype).mask
    assert mask.dtype == dtype
    assert mask.shape == (2, 1, 7, 7)
    assert set(mask.flatten().tolist()) == {0.0, torch.finfo(dtype).min}


@st.composite
def trajectories(draw: st.DrawFn) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """1 to 4 of (prompt, response, candidate, leaves), all ids different from padding's 0."""
    token = st.integers(1, 99)
    out = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(0, 6))
        row = st.lists(token, min_size=size, max_size=size)
        leaf = st.lists(st.booleans(), min_size=size, max_size=size)
        prompt = draw(st.lists(token, min_size=1, max_size=4))
        out.append((ints(*prompt), ints(*draw(row)), ints(*draw(row)), bools(*draw(leaf))))
    return out


def pack_all(items: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> PackedTrees:
    prompts, responses, candidates, leaves = zip(*items, strict=True)
    return pack(
        prompts=prompts,
        responses=responses,
        candidates=candidates,
        leaves=leaves,
        dtype=torch.float32,
        device=CPU,
    )


@given(trajectories())
@settings(deadline=None, max_examples=60)
def test_indices_read_trunk_and_leaves_back_in_row_order(
    items: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
) -> None:
    trees = pack_all(items)
    flat = trees.ids.flatten()
    leaf = np.concatenate([leaves for *_, leaves in items])
    candidates = np.concatenate([candidate for _, _, candidate, _ in items])
    assert flat[trees.trunk_index].tolist() == np.concatenate([r for _, r, _, _ in items]).tolist()
    assert flat[trees.leaf_index].tolist() == candidates[leaf].tolist()
    assert trees.leaf_row.tolist() == np.flatnonzero(leaf).tolist()
    assert trees.num_tokens == sum(len(p) + len(r) + int(k.sum()) for p, r, _, k in items)
    assert trees.num_tokens == int((trees.ids != 0).sum())


@given(trajectories())
@settings(deadline=None, max_examples=60)
def test_a_leaf_sees_the_trunk_before_its_position_and_itself_and_nothing_sees_it(
    items: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
) -> None:
    trees = pack_all(items)
    length = trees.ids.shape[1]
    for s, (prompt, response, _, leaves) in enumerate(items):
        trunk = len(prompt) + len(response)
        parents = np.flatnonzero(leaves)
        for query in range(length):
            if query < trunk:
                expected = set(range(query + 1))
            elif query < trunk + len(parents):
                expected = {*range(len(prompt) + parents[query - trunk]), query}
            else:
                expected = {query}
            sees = torch.nonzero(trees.mask[s, 0, query] == 0).flatten().tolist()
            assert set(sees) == expected


@pytest.mark.parametrize(
    ("token", "candidate", "has_leaf"),
    [(5, 6, True), (5, 5, False), (1, 6, False), (5, 1, False), (1, 2, False), (1, 1, False)],
)
def test_only_two_different_plain_tokens_need_a_leaf(token: int, candidate: int, has_leaf: bool) -> None:
    assert leaf_positions(ints(token), ints(candidate), {1, 2}).tolist() == [has_leaf]


def test_without_special_tokens_every_difference_is_a_leaf() -> None:
    assert leaf_positions(ints(1, 2, 3), ints(1, 0, 4), ()).tolist() == [False, True, True]


# --- the same model gives the same hidden states --------------------------------------------------


def random_backbone(attention: str) -> Qwen2Model:
    """Weights large enough that every key and every position matters."""
    config = Qwen2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        attn_implementation=attention,
    )
    torch.manual_seed(0)
    return Qwen2Model(config).eval()


@torch.no_grad()
def error_of_leaves(backbone: Qwen2Model, ids: torch.Tensor, mask: torch.Tensor, position_ids: torch.Tensor) -> float:
    """Largest difference of a hidden state to a separate forward, over the example's leaves."""
    packed = backbone(ids, attention_mask=mask, position_ids=position_ids).last_hidden_state
    errors = []
    for s, index, prefix, leaf in (
        (0, 5, [10, 11, 12], 93),
        (0, 6, [10, 11, 12, 13], 94),
        (1, 3, [20], 95),
    ):
        alone = backbone(torch.tensor([[*prefix, leaf]])).last_hidden_state[0, -1]
        errors.append((packed[s, index] - alone).abs().max().item())
    return max(errors)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_leaves_equal_separate_forwards(attention: str) -> None:
    trees = two_trajectories()
    backbone = random_backbone(attention)
    assert error_of_leaves(backbone, trees.ids, trees.mask, trees.position_ids) < 1e-5


def test_a_position_one_too_far_breaks_exactness() -> None:
    trees = two_trajectories()
    shifted = trees.position_ids.clone()
    shifted.view(-1)[trees.leaf_index] += 1
    assert error_of_leaves(random_backbone("sdpa"), trees.ids, trees.mask, shifted) > 1e-2


def test_a_visible_sibling_breaks_exactness() -> None:
    trees = two_trajectories()
    mask = trees.mask.clone()
    mask[0, 0, 6, 5] = 0.0
    assert error_of_leaves(random_backbone("sdpa"), trees.ids, mask, trees.position_ids) > 1e-2


def test_a_visible_trajectory_token_breaks_exactness() -> None:
    trees = two_trajectories()
    mask = trees.mask.clone()
    mask[0, 0, 5, 3] = 0.0
    assert error_of_leaves(random_backbone("sdpa"), trees.ids, mask, trees.position_ids) > 1e-2


@torch.no_grad()
def test_padding_gives_no_nan() -> None:
    trees = two_trajectories()
    hidden = random_backbone("sdpa")(
        trees.ids, attention_mask=trees.mask, position_ids=trees.position_ids
    ).last_hidden_state
    assert bool(torch.isfinite(hidden).all())


def test_a_plain_causal_row_gets_the_causal_mask() -> None:
    mask = additive_mask(torch.arange(5)[None], torch.float32)
    assert torch.equal(mask[0, 0] == 0, torch.ones(5, 5).tril().bool())


# --- batches --------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 120))
def test_batches_hold_every_trajectory_once_and_keep_the_budget(sizes: list[int], budget: int) -> None:
    batches = batches_within_budget(sizes, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    for batch in batches:
        padded = max(sizes[i] for i in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


def test_batches_are_of_neighbours_in_length_longest_first() -> None:
    assert batches_within_budget([3, 9, 4, 9, 1], 18) == [[1, 3], [2, 0, 4]]


def test_a_trajectory_over_the_budget_goes_alone() -> None:
    assert batches_within_budget([2, 30, 2], 10) == [[1], [0, 2]]
