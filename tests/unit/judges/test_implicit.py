"""The implicit judge on pairs of small random checkpoints, against plain transformers models."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tests.unit.judges.checkpoints import ROUNDING
from vcrd_ray.errors import ModelError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.implicit import ImplicitJudge, load_implicit_judge
from vcrd_ray.types import JudgeRequest, StepSolution

BETA = 0.7
WEIGHTS = "model.safetensors"
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, one special token first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["<eos>", *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def write_model(directory: Path, *, seed: int, chat: bool = False, **changes: Any) -> Path:
    """A language model whose log-ratio to another seed's varies by more than 1."""
    sizes = {"vocab_size": 260, "max_position_embeddings": 80, "tie_word_embeddings": False, **changes}
    config = Qwen2Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        **sizes,
    )
    torch.manual_seed(seed)
    Qwen2ForCausalLM(config).save_pretrained(directory)
    tokenizer = byte_tokenizer()
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(directory)
    return directory


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(directory / WEIGHTS)
    edit(state)
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


def load(path: Path, reference: Path, *, beta: float = BETA, max_batch_tokens: int = 4096) -> ImplicitJudge:
    return load_implicit_judge(
        path, reference=reference, beta=beta, dtype="float32", device="cpu", max_batch_tokens=max_batch_tokens
    )


def ragged_request() -> JudgeRequest:
    """Five trajectories of 0 to 20 tokens, about every third proposal equal."""
    rng = np.random.default_rng(0)
    responses = [rng.integers(0, 257, size=n).astype(np.int32) for n in (7, 20, 1, 0, 4)]
    proposals = [np.where(rng.random(len(r)) < 0.3, r, (r + 5) % 257).astype(np.int32) for r in responses]
    questions = ("1+1?", "How many pens?", "x", "1+1?", "Ann has 12 pens, gets 7.")
    return JudgeRequest(questions=questions, responses=tuple(responses), proposals=tuple(proposals))


@cache
def plain(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()


def plain_log_ratios(path: Path, reference: Path, prompt: list[int], prefix: list[int]) -> torch.Tensor:
    """beta * (ln pi - ln pi_ref) of all next tokens, by forwards of transformers over this prefix alone. [V]"""
    found = []
    for directory in (path, reference):
        with torch.no_grad():
            found.append(plain(directory)(torch.tensor([[*prompt, *prefix]])).logits[0, -1].log_softmax(-1))
    return BETA * (found[0] - found[1])


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("implicit")
    return write_model(directory / "model", seed=0), write_model(directory / "reference", seed=1)


@pytest.fixture(scope="module")
def judge(paths: tuple[Path, Path]) -> ImplicitJudge:
    return load(*paths)


@pytest.fixture(scope="module")
def expected(paths: tuple[Path, Path]) -> np.ndarray:
    """Own and proposal logits of the ragged request, a forward a prefix. [N, 2]"""
    tokenizer = AutoTokenizer.from_pretrained(paths[0])
    request, found = ragged_request(), []
    for question, response, proposal in zip(request.questions, request.responses, request.proposals, strict=True):
        prompt = tokenizer.encode(f"{question}\n")
        for t in range(len(response)):
            ratios = plain_log_ratios(*paths, prompt, response[:t].tolist())
            found.append([ratios[response[t]].item(), ratios[proposal[t]].item()])
    return np.asarray(found)


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 4096])
def test_every_token_equals_forwards_of_both_models_over_its_prefix(
    paths: tuple[Path, Path], expected: np.ndarray, max_batch_tokens: int
) -> None:
    scores = load(*paths, max_batch_tokens=max_batch_tokens).score(ragged_request())
    assert expected.std() > 0.5
    assert np.abs(scores.trunk_logit - expected[:, 0]).max() < ROUNDING
    assert np.abs(scores.branch_logit - expected[:, 1]).max() < ROUNDING


def test_equal_candidates_are_a_bit_equal_copy(judge: ImplicitJudge) -> None:
    request = ragged_request()
    same = np.concatenate(request.responses) == np.concatenate(request.proposals)
    scores = judge.score(request)
    assert 0 < same.sum() < len(same)
    assert np.array_equal(scores.trunk_logit[same], scores.branch_logit[same])
    assert (scores.trunk_logit[~same] != scores.branch_logit[~same]).all()


def test_chat_template_makes_the_prompt_where_there_is_one(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    path = write_model(tmp_path, seed=0, chat=True)
    prompt = byte_tokenizer().encode("<user>1+1?</user><assistant>")
    response = np.array([50, 60, 70], dtype=np.int32)
    request = JudgeRequest(questions=("1+1?",), responses=(response,), proposals=(response + 1,))
    scores = load(path, paths[1]).score(request)
    for t in range(3):
        ratios = plain_log_ratios(path, paths[1], prompt, response[:t].tolist())
        assert abs(scores.trunk_logit[t] - ratios[response[t]].item()) < ROUNDING
        assert abs(scores.branch_logit[t] - ratios[response[t] + 1].item()) < ROUNDING


def test_tied_models_use_their_embedding_as_head(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    path = write_model(tmp_path, seed=2, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(path / WEIGHTS)
    response = np.array([50], dtype=np.int32)
    request = JudgeRequest(questions=("x",), responses=(response,), proposals=(response + 3,))
    scores = load(path, paths[1]).score(request)
    ratios = plain_log_ratios(path, paths[1], byte_tokenizer().encode("x\n"), [])
    assert abs(scores.trunk_logit[0] - ratios[50].item()) < ROUNDING
    assert abs(scores.branch_logit[0] - ratios[53].item()) < ROUNDING


def test_a_model_and_itself_give_zero_everywhere(paths: tuple[Path, Path]) -> None:
    scores = load(paths[0], paths[0]).score(ragged_request())
    assert not scores.trunk_logit.any()
    assert not scores.branch_logit.any()


def test_head_is_fp32_on_a_bf16_backbone(paths: tuple[Path, Path], judge: ImplicitJudge) -> None:
    bf16 = load_implicit_judge(
        paths[0], reference=paths[1], beta=BETA, dtype="bfloat16", device="cpu", max_batch_tokens=4096
    )
    logits = bf16.score(ragged_request()).trunk_logit
    rounded = torch.from_numpy(logits).bfloat16().float().numpy()
    assert (rounded != logits).mean() > 0.9
    assert np.abs(logits - judge.score(ragged_request()).trunk_logit).max() < 0.5


# --- steps ----------------------------------------------------------------------------------------


def test_a_step_is_the_sum_over_its_tokens(paths: tuple[Path, Path]) -> None:
    solutions = [
        StepSolution(question="1+1?", steps=("It is", "2", "so 2.")),
        StepSolution(question="x", steps=()),
        StepSolution(question="How?", steps=("a",)),
    ]
    tokenizer = byte_tokenizer()
    for budget in (1, 4096):
        scores = load(*paths, max_batch_tokens=budget).score_steps(solutions)
        assert [len(s) for s in scores] == [3, 0, 1]
        for solution, found in zip(solutions, scores, strict=True):
            prefix: list[int] = []
            for step, score in zip(solution.steps, found, strict=True):
                total = 0.0
                for token in tokenizer.encode(f"{step}\n"):
                    prompt = tokenizer.encode(f"{solution.question}\n")
                    total += plain_log_ratios(*paths, prompt, prefix)[token].item()
                    prefix.append(token)
                assert abs(score - total) < 1e-4


# --- self-check -----------------------------------------------------------------------------------


def test_self_check_of_a_sound_judge_is_rounding(judge: ImplicitJudge) -> None:
    assert 0.0 < judge.self_check(ragged_request(), num_branches=20, seed=0) < ROUNDING


def test_self_check_finds_a_model_that_sees_what_follows(paths: tuple[Path, Path]) -> None:
    judge = load(*paths)
    layer = judge._models[0].backbone.layers[0]
    layer.register_forward_hook(lambda _, __, output: output + output.mean(1, keepdim=True))
    assert judge.self_check(ragged_request(), num_branches=20, seed=0) > 1e-2


def test_self_check_without_numbers_is_infinite(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    path = write_model(tmp_path, seed=0)
    edit_weights(path, lambda state: state["lm_head.weight"].fill_(float("nan")))
    assert load(path, paths[1]).self_check(ragged_request(), num_branches=4, seed=0) == float("inf")


def test_an_empty_request_has_empty_scores(judge: ImplicitJudge) -> None:
    nothing = JudgeRequest(questions=(), responses=(), proposals=())
    scores = judge.score(nothing)
    assert (len(scores.trunk_logit), len(scores.branch_logit), scores.num_tokens) == (0, 0, 0)
    assert judge.self_check(nothing, num_branches=8, seed=0) == 0.0


# --- what it says of itself -----------------------------------------------------------------------


def test_scores_are_float32_rows_and_tokens_of_both_models_count(judge: ImplicitJudge) -> None:
    as_judge: Judge = judge
    request = ragged_request()
    scores = as_judge.score(request)
    assert scores.trunk_logit.shape == scores.branch_logit.shape == (32,)
    assert scores.trunk_logit.dtype == scores.branch_logit.dtype == np.float32
    lengths = [(len(q) + 1, len(r)) for q, r in zip(request.questions, request.responses, strict=True)]
    assert scores.num_tokens == 2 * sum(prompt + n - 1 for prompt, n in lengths if n)


def test_fingerprint_is_made_of_both_models_and_beta(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    other = write_model(tmp_path, seed=5)
    prints = [
        load(*pair, beta=beta).profile.fingerprint
        for pair, beta in ((paths, BETA), ((other, paths[1]), BETA), ((paths[0], other), BETA), (paths, 0.1))
    ]
    assert len(set(prints)) == 4
    assert load(*paths).profile.fingerprint == prints[0]


def test_profile_reads_policy_tokens(judge: ImplicitJudge) -> None:
    profile = judge.profile
    assert (profile.family, profile.scores) == ("implicit", "token")


# --- what cannot be used --------------------------------------------------------------------------


def test_different_vocabularies_are_refused(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    other = write_model(tmp_path, seed=0, vocab_size=264)
    with pytest.raises(ModelError, match=r"260 tokens, that of its reference .* 264; judge\.reference must be"):
        load(paths[0], other)


def test_missing_head_of_an_untied_model_is_named(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    path = write_model(tmp_path, seed=0)
    edit_weights(path, lambda state: state.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"no tensor 'lm_head\.weight'.*set tie_word_embeddings"):
        load(path, paths[1])


def test_models_that_bias_their_logits_are_refused(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    path = write_model(tmp_path, seed=0)
    edit_weights(path, lambda state: state.update({"lm_head.bias": torch.zeros(260)}))
    with pytest.raises(ModelError, match=r"more than lm_head\.weight times .*\(lm_head\.bias\)"):
        load(path, paths[1])


def test_pickle_weights_are_refused(tmp_path: Path, paths: tuple[Path, Path]) -> None:
    path = write_model(tmp_path, seed=0)
    (path / WEIGHTS).rename(path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no model\.safetensors.*refused"):
        load(paths[0], path)


@pytest.mark.parametrize("token", [-1, 260])
def test_token_without_embedding_names_trajectory_and_id(judge: ImplicitJudge, token: int) -> None:
    good, foreign = np.array([5, 6], dtype=np.int32), np.array([5, token], dtype=np.int32)
    request = JudgeRequest(questions=("x", "y"), responses=(good, good), proposals=(good, foreign))
    with pytest.raises(ModelError, match=rf"trajectory 1: token id {token} is outside .* 260 embeddings"):
        judge.score(request)


def test_trajectory_beyond_the_judges_positions_is_refused(judge: ImplicitJudge) -> None:
    response = np.full(79, 5, dtype=np.int32)
    request = JudgeRequest(questions=("x",), responses=(response,), proposals=(response,))
    with pytest.raises(ModelError, match=r"trajectory 0: 81 tokens .* 80 positions; shorten"):
        judge.score(request)
