"""The value-head judge: its input, its head, its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen2ForCausalLM

from tests.unit.judges.checkpoints import (
    BOS,
    EOS,
    HIDDEN,
    ROUNDING,
    WEIGHTS,
    byte_tokenizer,
    differences,
    edit_weights,
    ragged_request,
    write_checkpoint,
)
from vcrd_ray.errors import ModelError
from vcrd_ray.judges.packed import PackedJudge
from vcrd_ray.judges.value_head import load_value_head_judge
from vcrd_ray.types import StepSolution


def load(path: Path, **changes: Any) -> PackedJudge:
    how: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "special_ids": {BOS, EOS},
        "max_batch_tokens": 4096,
        "attention": "auto",
    }
    return load_value_head_judge(path, **(how | changes))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> PackedJudge:
    return load(checkpoint)


@pytest.mark.parametrize(("shards", "prefix"), [(3, ""), (1, "pretrained_model."), (2, "pretrained_model.")])
def test_shards_and_wrapper_prefixes_are_read(tmp_path: Path, judge: PackedJudge, shards: int, prefix: str) -> None:
    other = load(write_checkpoint(tmp_path, shards=shards, prefix=prefix))
    assert np.array_equal(other.score(ragged_request()).branch_logit, judge.score(ragged_request()).branch_logit)


def test_trunk_is_the_head_on_the_causal_model_after_bos_problem_newline(checkpoint: Path, judge: PackedJudge) -> None:
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
    assert np.abs(judge.score(request).trunk_logit - np.concatenate(expected)).max() < ROUNDING


def test_steps_are_read_at_the_newline_behind_each(checkpoint: Path, judge: PackedJudge) -> None:
    """The authors' own input: steps tokenised one by one, the id of a newline behind each."""
    reference = Qwen2ForCausalLM.from_pretrained(checkpoint, dtype="float32").model
    head = load_file(checkpoint / WEIGHTS)
    solutions = [
        StepSolution(question="1+1?", steps=("One and one.", "", "So 2")),
        StepSolution(question="x", steps=("y",)),
    ]
    for solution, scores in zip(solutions, judge.score_steps(solutions), strict=True):
        text = f"<bos>{solution.question}\n"
        for step, score in zip(solution.steps, scores, strict=True):
            text += f"{step}\n"
            # Piece by piece: the tokenizer would merge a blank line.
            newline = byte_tokenizer().encode("\n")
            ids = [i for part in text.split("\n")[:-1] for i in [*byte_tokenizer().encode(part), *newline]]
            with torch.no_grad():
                hidden = reference(torch.tensor([ids])).last_hidden_state[0, -1]
            expected = hidden @ head["v_head.summary.weight"][0] + head["v_head.summary.bias"][0]
            assert score == pytest.approx(float(expected), abs=ROUNDING)


def test_bf16_backbone_stays_near_its_separate_forwards(checkpoint: Path) -> None:
    assert differences(load(checkpoint, dtype="bfloat16"), ragged_request()).max() < 0.2


def test_head_is_fp32_on_a_bf16_backbone(checkpoint: Path) -> None:
    logits = torch.from_numpy(load(checkpoint, dtype="bfloat16").score(ragged_request()).trunk_logit)
    assert (logits.bfloat16().float() != logits).float().mean() > 0.9


def test_bf16_checkpoint_is_read_in_the_dtype_asked_for(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)

    def to_bf16(state: dict[str, torch.Tensor]) -> None:
        state.update({name: tensor.bfloat16() for name, tensor in state.items()})

    edit_weights(tmp_path, to_bf16)
    assert differences(load(tmp_path), ragged_request()).max() < ROUNDING


def test_fingerprint_is_that_of_the_files(tmp_path: Path, judge: PackedJudge) -> None:
    write_checkpoint(tmp_path)
    assert load(tmp_path).profile.fingerprint == judge.profile.fingerprint
    edit_weights(tmp_path, lambda state: state["v_head.summary.bias"].add_(1.0))
    assert load(tmp_path).profile.fingerprint != judge.profile.fingerprint


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
        load(write_checkpoint(tmp_path, tokenizer=byte_tokenizer(bos=False)))
