"""Packed scoring, whatever the family and the attention: equal to a forward of its own for every score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.judges.checkpoints import (
    BOS,
    EOS,
    ROUNDING,
    branch_tokens,
    byte_tokenizer,
    differences,
    flat,
    ragged_request,
    two_label_tensors,
    write_checkpoint,
)
from vcrd_ray.errors import ModelError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.attention import AttentionKind
from vcrd_ray.judges.packed import PackedJudge
from vcrd_ray.judges.packed_trees import Tree
from vcrd_ray.judges.qwen_prm import load_qwen_prm_judge
from vcrd_ray.judges.value_head import load_value_head_judge
from vcrd_ray.types import JudgeRequest, JudgeScores

pytestmark = pytest.mark.slow

Load = Callable[..., PackedJudge]
ATTENTIONS: list[AttentionKind] = ["dense", "flex", "two_stream"]


@pytest.fixture(scope="module", params=["value_head", "qwen_prm"])
def load(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads the family's judge."""
    path: Path = tmp_path_factory.mktemp("judge")

    def value_head(**changes: Any) -> PackedJudge:
        how: dict[str, Any] = {
            "dtype": "float32",
            "device": "cpu",
            "special_ids": {BOS, EOS},
            "max_batch_tokens": 4096,
            "attention": "auto",
        }
        return load_value_head_judge(path, **(how | changes))

    def qwen_prm(**changes: Any) -> PackedJudge:
        how: dict[str, Any] = {
            "dtype": "float32",
            "device": "cpu",
            "separator": "<extra_0>",
            "system": "Be kind.",
            "policy_tokenizer": byte_tokenizer(),
            "max_batch_tokens": 4096,
            "attention": "auto",
        }
        return load_qwen_prm_judge(path, **(how | changes))

    if request.param == "value_head":
        write_checkpoint(path)
        return value_head
    write_checkpoint(path, two_label_tensors)
    return qwen_prm


@pytest.fixture(scope="module")
def judge(load: Load) -> PackedJudge:
    return load()


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("max_batch_tokens", [4096, 150, 1])
def test_every_score_equals_a_forward_of_its_own(load: Load, attention: AttentionKind, max_batch_tokens: int) -> None:
    """Ragged trajectories, padded together, a few together and alone."""
    judge = load(attention=attention, max_batch_tokens=max_batch_tokens)
    assert differences(judge, ragged_request()).max() < ROUNDING


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("agreement", [0.0, 1.0])
def test_every_score_equals_a_forward_of_its_own_at_the_limits(
    load: Load, attention: AttentionKind, agreement: float
) -> None:
    assert differences(load(attention=attention), ragged_request(agreement)).max() < ROUNDING


class Mutated:
    """A reading whose trees are wrong in one way."""

    def __init__(self, inner: Any, change: Callable[[Tree], Tree]) -> None:
        self.inner, self.change = inner, change

    def tree(self, *asked: Any) -> Tree:
        return self.change(self.inner.tree(*asked))


def one_seen_too_many(tree: Tree) -> Tree:
    """Branches one position too far, where the trajectory's own token is visible to them."""
    return dataclasses.replace(tree, num_seen=np.minimum(tree.num_seen + 1, len(tree.trunk)))


def siblings_in_one_branch(tree: Tree) -> Tree:
    """The second branch sees the first."""
    return dataclasses.replace(
        tree, branch=np.maximum(tree.branch, tree.branch[0:1] + 1) if len(tree.branch) else tree.branch
    )


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("change", [one_seen_too_many, siblings_in_one_branch])
def test_a_wrong_position_or_a_visible_sibling_is_found(
    load: Load, judge: PackedJudge, attention: AttentionKind, change: Callable[[Tree], Tree]
) -> None:
    wrong, request = load(attention=attention), ragged_request()
    wrong._reading = Mutated(wrong._reading, change)  # type: ignore[assignment]
    own, other = judge.score_separately(request, branch_tokens(request))
    scores = wrong.score(request)
    rows = branch_tokens(request)
    found = np.abs([scores.trunk_logit[rows] - own, scores.branch_logit[rows] - other])
    assert found.max() > 1e-2


# --- where there is no branch ---------------------------------------------------------------------


def test_equal_candidates_are_a_bit_equal_copy(judge: PackedJudge) -> None:
    scores = judge.score(ragged_request(agreement=1.0))
    assert scores.branch_logit.tobytes() == scores.trunk_logit.tobytes()


def test_agreeing_positions_of_a_mixed_request_are_a_bit_equal_copy(judge: PackedJudge) -> None:
    request = ragged_request()
    same = flat(request.responses) == flat(request.proposals)
    scores = judge.score(request)
    assert 0 < same.sum() < len(same)
    assert np.array_equal(scores.branch_logit[same], scores.trunk_logit[same])
    assert (scores.branch_logit[~same] != scores.trunk_logit[~same]).all()


def test_special_tokens_get_no_branch_on_either_side(judge: PackedJudge) -> None:
    request = JudgeRequest(
        questions=("x",),
        responses=(np.array([50, 60, EOS], dtype=np.int32),),
        proposals=(np.array([EOS, 61, 70], dtype=np.int32),),
    )
    scores = judge.score(request)
    assert scores.branch_logit[[0, 2]].tolist() == scores.trunk_logit[[0, 2]].tolist()
    assert scores.branch_logit[1] != scores.trunk_logit[1]


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attention", "forwards"), [("dense", 1), ("flex", 1), ("two_stream", 1)])
def test_one_batch_runs_one_forward_and_a_small_budget_several(
    load: Load, attention: AttentionKind, forwards: int
) -> None:
    for budget, expected in ((10_000, forwards), (1, 5)):
        judge = load(attention=attention, max_batch_tokens=budget)
        calls: list[int] = []
        judge._backbone.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        judge.score(ragged_request())
        assert len(calls) == expected


def test_scores_follow_the_order_of_the_request(judge: PackedJudge) -> None:
    request = ragged_request()
    order = (3, 0, 4, 2, 1)
    shuffled = judge.score(
        JudgeRequest(
            questions=tuple(request.questions[s] for s in order),
            responses=tuple(request.responses[s] for s in order),
            proposals=tuple(request.proposals[s] for s in order),
        )
    )
    bounds = np.cumsum([0, *(len(r) for r in request.responses)])
    rows = np.concatenate([np.arange(bounds[s], bounds[s + 1]) for s in order])
    expected = judge.score(request)
    assert np.abs(shuffled.trunk_logit - expected.trunk_logit[rows]).max() < ROUNDING
    assert np.abs(shuffled.branch_logit - expected.branch_logit[rows]).max() < ROUNDING


# --- self-check -----------------------------------------------------------------------------------


def test_self_check_of_a_sound_judge_is_rounding(judge: PackedJudge) -> None:
    assert 0.0 < judge.self_check(ragged_request(), num_branches=8, seed=0) < ROUNDING


def test_self_check_without_branches_compares_trajectory_tokens(judge: PackedJudge) -> None:
    assert 0.0 < judge.self_check(ragged_request(agreement=1.0), num_branches=8, seed=0) < ROUNDING


def test_self_check_without_anything_to_compare_is_zero(judge: PackedJudge) -> None:
    nothing = JudgeRequest(questions=(), responses=(), proposals=())
    assert judge.self_check(nothing, num_branches=8, seed=0) == 0.0


def test_self_check_finds_a_model_that_attends_causally(load: Load) -> None:
    """As a library would that rebuilds its own mask."""
    judge = load()
    judge._backbone.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != "trees"}), with_kwargs=True
    )
    assert judge.self_check(ragged_request(), num_branches=8, seed=0) > 0.1


def test_self_check_of_a_judge_without_numbers_is_infinite(load: Load) -> None:
    judge = load()
    judge._head = lambda hidden: hidden.sum(-1) * torch.nan
    assert judge.self_check(ragged_request(), num_branches=8, seed=0) == float("inf")


# --- the seam -------------------------------------------------------------------------------------


def test_scores_have_one_row_a_response_position(judge: PackedJudge) -> None:
    as_judge: Judge = judge
    scores: JudgeScores = as_judge.score(ragged_request())
    assert scores.trunk_logit.shape == scores.branch_logit.shape == (45,)
    assert scores.trunk_logit.dtype == scores.branch_logit.dtype == np.float32
    assert scores.seconds > 0


def test_an_empty_request_has_empty_scores(judge: PackedJudge) -> None:
    scores = judge.score(JudgeRequest(questions=(), responses=(), proposals=()))
    assert (len(scores.trunk_logit), len(scores.branch_logit), scores.num_tokens) == (0, 0, 0)


def test_a_question_is_tokenised_once(judge: PackedJudge) -> None:
    judge.score(ragged_request())
    before = judge._reading._prompt.cache_info()  # type: ignore[attr-defined]
    judge.score(ragged_request())
    after = judge._reading._prompt.cache_info()  # type: ignore[attr-defined]
    assert after.misses == before.misses and after.hits == before.hits + 5


def test_dropout_is_off_whatever_state_the_backbone_comes_in(load: Load) -> None:
    judge = load()
    inner = judge._backbone.train()
    again = PackedJudge(
        backbone=inner,
        head=judge._head,
        reading=judge._reading,
        profile=judge.profile,
        max_batch_tokens=4096,
        attention="auto",
    )
    assert not inner.training
    assert np.array_equal(again.score(ragged_request()).trunk_logit, again.score(ragged_request()).trunk_logit)


def test_no_language_model_head_is_loaded(judge: PackedJudge) -> None:
    assert [name for name, _ in judge._backbone.named_parameters() if "lm_head" in name] == []


def test_token_without_embedding_names_trajectory_and_id(judge: PackedJudge) -> None:
    response = np.array([5, 260], dtype=np.int32)
    request = JudgeRequest(questions=("x",), responses=(response,), proposals=(response,))
    with pytest.raises(ModelError, match=r"trajectory 0: token id 260 is outside .* 260 embeddings"):
        judge.score(request)


def test_trajectory_beyond_the_judges_positions_is_refused(judge: PackedJudge) -> None:
    response = np.full(192, 5, dtype=np.int32)
    request = JudgeRequest(questions=("x",), responses=(response,), proposals=(response,))
    with pytest.raises(ModelError, match=r"trajectory 0: \d+ tokens .* 192 positions; shorten"):
        judge.score(request)
