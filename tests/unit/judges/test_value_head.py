"""The value-head judge on small random checkpoints, written here in the published layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from vcrd_ray.errors import ModelError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.value_head import ValueHeadJudge
from vcrd_ray.judges.value_head_checkpoint import read_value_head_checkpoint
from vcrd_ray.types import JudgeRequest, JudgeScores

HIDDEN = 48
BOS, EOS = 0, 1
WEIGHTS = "model.safetensors"


def byte_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """One token a byte, two special tokens first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<bos>", "<eos>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>", **({"bos_token": "<bos>"} if bos else {})}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def write_checkpoint(directory: Path, *, shards: int = 1, prefix: str = "", bos: bool = True, **changes: Any) -> Path:
    """A judge whose logits vary by about 2, so that small differences are errors and not luck."""
    config = Qwen2Config(
        vocab_size=260,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        **changes,
    )
    torch.manual_seed(0)
    state = dict(Qwen2ForCausalLM(config).state_dict())
    state["v_head.summary.weight"] = torch.randn(1, HIDDEN) * 2 / HIDDEN**0.5
    state["v_head.summary.bias"] = torch.tensor([0.5])
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    byte_tokenizer(bos=bos).save_pretrained(directory)
    write_weights(directory, {prefix + name: t for name, t in state.items()}, shards=shards)
    return directory


def write_weights(directory: Path, state: dict[str, torch.Tensor], *, shards: int = 1) -> None:
    if shards == 1:
        save_file(state, directory / WEIGHTS, metadata={"format": "pt"})
        return
    names = list(state)
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, file in enumerate(files):
        save_file({name: state[name] for name in names[i::shards]}, directory / file)
    weight_map = {name: files[i % shards] for i, name in enumerate(names)}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    state = load_file(directory / WEIGHTS)
    edit(state)
    save_file(state, directory / WEIGHTS, metadata={"format": "pt"})


def load(path: Path, *, dtype: str = "float32", max_batch_tokens: int = 4096) -> ValueHeadJudge:
    return ValueHeadJudge.load(
        path,
        dtype=dtype,
        device="cpu",
        special_ids={BOS, EOS},
        max_batch_tokens=max_batch_tokens,
    )


def ragged_request(agreement: float = 0.3) -> JudgeRequest:
    """Five trajectories of 1 to 20 tokens; prompts of different lengths, one asked twice."""
    rng = np.random.default_rng(0)
    responses = [rng.integers(2, 258, size=n).astype(np.int32) for n in (7, 20, 1, 13, 4)]
    candidates = [np.where(rng.random(len(r)) < agreement, r, 2 + (r + 5) % 256).astype(np.int32) for r in responses]
    questions = ("1+1?", "How many pens?", "x", "1+1?", "Ann has 12 pens, gets 7.")
    return JudgeRequest(questions=questions, responses=tuple(responses), candidates=tuple(candidates))


def flat(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.concatenate(arrays)


def leaf_rows(request: JudgeRequest) -> list[int]:
    return np.flatnonzero(flat(request.responses) != flat(request.candidates)).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> ValueHeadJudge:
    return load(checkpoint)


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shards", "prefix"), [(1, ""), (3, ""), (1, "pretrained_model."), (2, "pretrained_model.")])
def test_packed_equals_separate_on_every_leaf(tmp_path: Path, shards: int, prefix: str) -> None:
    judge = load(write_checkpoint(tmp_path, shards=shards, prefix=prefix))
    request = ragged_request()
    rows = leaf_rows(request)
    packed = judge.score(request).candidate_logit[rows]
    separate = judge.score_separately(request, rows)
    assert len(rows) > 20
    assert np.std(separate) > 0.5
    assert np.abs(packed - separate).max() < 1e-5


def test_trunk_is_the_head_on_the_causal_model_after_bos_problem_newline(
    checkpoint: Path, judge: ValueHeadJudge
) -> None:
    request = ragged_request()
    reference = Qwen2ForCausalLM.from_pretrained(checkpoint, dtype="float32").model
    head = load_file(checkpoint / WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    expected = []
    for question, response in zip(request.questions, request.responses, strict=True):
        prompt = tokenizer.encode("<bos>" + question + "\n")
        with torch.no_grad():
            hidden = reference(torch.tensor([[*prompt, *response.tolist()]])).last_hidden_state[0]
        logits = hidden @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"]
        expected.append(logits[len(prompt) :].numpy())
    assert np.abs(judge.score(request).trunk_logit - np.concatenate(expected)).max() < 1e-5


def test_bf16_backbone_stays_near_its_separate_forwards(checkpoint: Path) -> None:
    judge = load(checkpoint, dtype="bfloat16")
    request = ragged_request()
    rows = leaf_rows(request)
    packed = judge.score(request).candidate_logit[rows]
    assert np.abs(packed - judge.score_separately(request, rows)).max() < 0.2


def test_head_is_fp32_on_a_bf16_backbone(checkpoint: Path) -> None:
    logits = torch.from_numpy(load(checkpoint, dtype="bfloat16").score(ragged_request()).trunk_logit)
    assert (logits.bfloat16().float() != logits).float().mean() > 0.9


def test_bf16_checkpoint_is_read_in_the_dtype_asked_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    def to_bf16(state: dict[str, torch.Tensor]) -> None:
        state.update({name: tensor.bfloat16() for name, tensor in state.items()})

    edit_weights(tmp_path, to_bf16)
    judge, request = load(tmp_path), ragged_request()
    rows = leaf_rows(request)
    packed = judge.score(request).candidate_logit[rows]
    assert np.abs(packed - judge.score_separately(request, rows)).max() < 1e-5


# --- where there is no leaf -----------------------------------------------------------------------


def test_equal_candidates_are_a_bit_equal_copy_and_cost_no_token(judge: ValueHeadJudge) -> None:
    request = ragged_request(agreement=1.0)
    scores = judge.score(request)
    assert scores.candidate_logit.tobytes() == scores.trunk_logit.tobytes()
    prompts = sum(len(question) + 2 for question in request.questions)
    assert scores.num_tokens == prompts + len(flat(request.responses))


def test_every_differing_candidate_costs_one_token(judge: ValueHeadJudge) -> None:
    request = ragged_request()
    without = judge.score(ragged_request(agreement=1.0)).num_tokens
    assert judge.score(request).num_tokens == without + len(leaf_rows(request))


def test_agreeing_positions_of_a_mixed_request_are_a_bit_equal_copy(judge: ValueHeadJudge) -> None:
    request = ragged_request()
    same = flat(request.responses) == flat(request.candidates)
    scores = judge.score(request)
    assert 0 < same.sum() < len(same)
    assert np.array_equal(scores.candidate_logit[same], scores.trunk_logit[same])
    assert (scores.candidate_logit[~same] != scores.trunk_logit[~same]).all()


def test_special_tokens_get_no_leaf_on_either_side(judge: ValueHeadJudge) -> None:
    request = JudgeRequest(
        questions=("x",),
        responses=(np.array([50, 60, EOS], dtype=np.int32),),
        candidates=(np.array([EOS, 61, 70], dtype=np.int32),),
    )
    scores = judge.score(request)
    assert scores.candidate_logit[[0, 2]].tolist() == scores.trunk_logit[[0, 2]].tolist()
    assert scores.candidate_logit[1] != scores.trunk_logit[1]
    assert scores.num_tokens == 3 + 3 + 1


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_tokens", [1, 60, 100])
def test_scores_do_not_depend_on_the_batch(checkpoint: Path, judge: ValueHeadJudge, max_batch_tokens: int) -> None:
    request = ragged_request()
    together = judge.score(request)
    split = load(checkpoint, max_batch_tokens=max_batch_tokens).score(request)
    assert np.abs(split.trunk_logit - together.trunk_logit).max() < 1e-5
    assert np.abs(split.candidate_logit - together.candidate_logit).max() < 1e-5
    assert split.num_tokens == together.num_tokens


def test_scores_follow_the_order_of_the_request(judge: ValueHeadJudge) -> None:
    request = ragged_request()
    order = (3, 0, 4, 2, 1)
    shuffled = judge.score(
        JudgeRequest(
            questions=tuple(request.questions[s] for s in order),
            responses=tuple(request.responses[s] for s in order),
            candidates=tuple(request.candidates[s] for s in order),
        )
    )
    bounds = np.cumsum([0, *(len(r) for r in request.responses)])
    rows = np.concatenate([np.arange(bounds[s], bounds[s + 1]) for s in order])
    expected = judge.score(request)
    assert np.abs(shuffled.trunk_logit - expected.trunk_logit[rows]).max() < 1e-5
    assert np.abs(shuffled.candidate_logit - expected.candidate_logit[rows]).max() < 1e-5


def test_one_batch_runs_one_forward_and_a_small_budget_several(checkpoint: Path) -> None:
    request = ragged_request()
    assert num_forwards(checkpoint, max_batch_tokens=10_000, request=request) == 1
    assert num_forwards(checkpoint, max_batch_tokens=1, request=request) == 5


def num_forwards(checkpoint: Path, *, max_batch_tokens: int, request: JudgeRequest) -> int:
    read = read_value_head_checkpoint(checkpoint, dtype="float32")
    calls: list[int] = []
    read.backbone.register_forward_hook(lambda *_: calls.append(1))
    assemble(read.backbone, checkpoint, max_batch_tokens=max_batch_tokens).score(request)
    return len(calls)


def assemble(
    backbone: Any,
    checkpoint: Path,
    *,
    bias: float = 0.0,
    max_batch_tokens: int = 4096,
    encode_prompt: Callable[[str], list[int]] | None = None,
) -> ValueHeadJudge:
    """A judge around any backbone, with the checkpoint's head."""
    read = read_value_head_checkpoint(checkpoint, dtype="float32")
    return ValueHeadJudge(
        backbone=backbone,
        head_weight=read.head_weight,
        head_bias=torch.tensor([bias]),
        encode_prompt=encode_prompt or read.encode_prompt,
        special_ids={BOS, EOS},
        max_batch_tokens=max_batch_tokens,
        fingerprint="test",
    )


def test_a_question_is_tokenised_once(checkpoint: Path) -> None:
    asked: list[str] = []

    def encode(question: str) -> list[int]:
        asked.append(question)
        return [BOS, 10]

    read = read_value_head_checkpoint(checkpoint, dtype="float32")
    judge = assemble(read.backbone, checkpoint, encode_prompt=encode)
    judge.score(ragged_request())
    judge.score(ragged_request())
    assert sorted(asked) == sorted(set(ragged_request().questions))


def test_dropout_is_off_whatever_state_the_backbone_comes_in(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, attention_dropout=0.5)
    backbone = read_value_head_checkpoint(tmp_path, dtype="float32").backbone.train()
    judge = assemble(backbone, tmp_path)
    first, second = judge.score(ragged_request()), judge.score(ragged_request())
    assert np.array_equal(first.candidate_logit, second.candidate_logit)


# --- self-check -----------------------------------------------------------------------------------


def test_self_check_of_a_sound_judge_is_rounding(judge: ValueHeadJudge) -> None:
    assert 0.0 < judge.self_check(ragged_request(), num_leaves=8, seed=0) < 1e-5


def test_self_check_without_leaves_compares_trajectory_tokens(judge: ValueHeadJudge) -> None:
    assert 0.0 < judge.self_check(ragged_request(agreement=1.0), num_leaves=8, seed=0) < 1e-5


def test_self_check_without_anything_to_compare_is_zero(judge: ValueHeadJudge) -> None:
    nothing = JudgeRequest(questions=(), responses=(), candidates=())
    assert judge.self_check(nothing, num_leaves=8, seed=0) == 0.0


class RebuildsCausalMask(torch.nn.Module):
    """A backbone that ignores the mask it is given, as a library that rebuilds its own would."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.config, self.dtype, self.device = inner.config, inner.dtype, inner.device

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.inner.get_input_embeddings()

    def forward(self, *, attention_mask: torch.Tensor | None, **inputs: Any) -> Any:
        return self.inner(**inputs)


def test_self_check_finds_a_model_that_rebuilds_its_mask(checkpoint: Path) -> None:
    inner = read_value_head_checkpoint(checkpoint, dtype="float32").backbone
    judge = assemble(RebuildsCausalMask(inner), checkpoint)
    assert judge.self_check(ragged_request(), num_leaves=8, seed=0) > 0.1


def test_self_check_of_a_judge_without_numbers_is_infinite(checkpoint: Path) -> None:
    backbone = read_value_head_checkpoint(checkpoint, dtype="float32").backbone
    judge = assemble(backbone, checkpoint, bias=float("nan"))
    assert judge.self_check(ragged_request(), num_leaves=8, seed=0) == float("inf")


# --- the seam -------------------------------------------------------------------------------------


def test_scores_have_one_row_a_response_position(judge: ValueHeadJudge) -> None:
    as_judge: Judge = judge
    scores: JudgeScores = as_judge.score(ragged_request())
    assert scores.trunk_logit.shape == scores.candidate_logit.shape == (45,)
    assert scores.trunk_logit.dtype == scores.candidate_logit.dtype == np.float32
    assert scores.seconds > 0


def test_an_empty_request_has_empty_scores(judge: ValueHeadJudge) -> None:
    scores = judge.score(JudgeRequest(questions=(), responses=(), candidates=()))
    assert (len(scores.trunk_logit), len(scores.candidate_logit), scores.num_tokens) == (0, 0, 0)


def test_fingerprint_is_that_of_the_files(tmp_path: Path, judge: ValueHeadJudge) -> None:
    write_checkpoint(tmp_path)
    assert load(tmp_path).fingerprint == judge.fingerprint
    edit_weights(tmp_path, lambda state: state["v_head.summary.bias"].add_(1.0))
    assert load(tmp_path).fingerprint != judge.fingerprint


def test_no_language_model_head_is_loaded(checkpoint: Path) -> None:
    assert "lm_head.weight" in load_file(checkpoint / WEIGHTS)
    backbone = read_value_head_checkpoint(checkpoint, dtype="float32").backbone
    assert [name for name, _ in backbone.named_parameters() if "lm_head" in name] == []


# --- what cannot be used --------------------------------------------------------------------------


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere: no such directory; give a downloaded"):
        load(tmp_path / "nowhere")


def test_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path)


def test_pickle_weights_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    torch.save(load_file(tmp_path / WEIGHTS), tmp_path / "pytorch_model.bin")
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors.*refused.*convert them"):
        load(tmp_path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"'model-00002-of-00003\.safetensors'.*\(1 of 3 files\)"):
        load(tmp_path)


def test_broken_weights_are_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is no readable safetensors file"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["v_head.summary.weight", "v_head.summary.bias"])
def test_missing_head_tensor_is_named(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    edit_weights(tmp_path, lambda state: state.pop(name))
    with pytest.raises(ModelError, match=rf"no tensor '{name}'.*needs 'v_head\.summary\.weight'"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("v_head.summary.weight", (2, HIDDEN), r"weight' has shape \[2, 48\], expected \[1, 48\]"),
        ("v_head.summary.weight", (1, 7), r"weight' has shape \[1, 7\], expected \[1, 48\]"),
        ("v_head.summary.bias", (2,), r"bias' has shape \[2\], expected \[1\]"),
    ],
)
def test_wrong_head_shape_names_the_tensor_and_both_shapes(
    tmp_path: Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    write_checkpoint(tmp_path)
    edit_weights(tmp_path, lambda state: state.update({name: torch.zeros(shape)}))
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


def test_missing_backbone_weight_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit_weights(tmp_path, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"1 weights .* missing, .*layers\.1\.mlp\.up_proj"):
        load(tmp_path)


def test_weights_of_another_size_than_the_config_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    edit_weights(tmp_path, lambda state: state.update({"model.norm.weight": torch.ones(7)}))
    with pytest.raises(ModelError, match=r"the weights do not fit config\.json"):
        load(tmp_path)


def test_unknown_model_type_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json is not usable"):
        load(tmp_path)


def test_sliding_window_attention_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    with pytest.raises(ModelError, match=r"sliding-window.*use_sliding_window"):
        load(tmp_path)


def test_tokenizer_without_bos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no bos_token.*set `bos_token`"):
        load(write_checkpoint(tmp_path, bos=False))


def test_token_without_embedding_names_trajectory_and_id(judge: ValueHeadJudge) -> None:
    response = np.array([5, 260], dtype=np.int32)
    request = JudgeRequest(questions=("x",), responses=(response,), candidates=(response,))
    with pytest.raises(ModelError, match=r"trajectory 0: token id 260 is outside .* 260 embeddings"):
        judge.score(request)


def test_trajectory_beyond_the_judges_positions_is_refused(judge: ValueHeadJudge) -> None:
    response = np.full(62, 5, dtype=np.int32)
    request = JudgeRequest(questions=("x",), responses=(response,), candidates=(response,))
    with pytest.raises(ModelError, match=r"trajectory 0: 65 tokens .* 64 positions; shorten"):
        judge.score(request)
