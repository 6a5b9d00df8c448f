"""Checkpoints that do not make the model of their config.json are refused, from the headers of their files and when loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Mamba2Config, T5Config

from tests.unit.models.families import CPU, ENCODERS, PLAIN, WEIGHTS, edit_json, edit_weights, write_model
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.errors import ModelError
from vcrd_ray.models.causal_lm import check_checkpoint
from vcrd_ray.models.checkpoint_files import load_causal_lm, load_head, resolve_model
from vcrd_ray.types import Prompt

Tensors = dict[str, torch.Tensor]


def refusals(path: Path, *, trained: bool = False) -> list[str]:
    """What is said of a checkpoint before it is loaded and when it is, each in one line."""
    said = []
    for use in (
        lambda: check_checkpoint(resolve_model(str(path)), plain_head=False, by_transformers=True, trained=trained),
        lambda: load_causal_lm(path, dtype="float32", device=CPU, trained=trained),
    ):
        with pytest.raises(ModelError) as caught:
            use()
        assert "\n" not in str(caught.value)
        said.append(str(caught.value))
    return said


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


@pytest.mark.parametrize("family", ["llama", "qwen2 tied", "olmo2", "gpt2", "bloom"])
@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (lambda t: {f"module.{name}": tensor for name, tensor in t.items()}, ["missing", "foreign", "module."]),
        (lambda t: without(".1.")(t), ["missing", ".1."]),
        (lambda t: t | {"v_head.weight": torch.ones(3)}, ["1 foreign (v_head.weight)"]),
        (lambda t: t | {sorted(t)[-1]: torch.ones(7, 5)}, ["1 of another shape", "[7, 5] for"]),
    ],
)
def test_tensors_that_are_not_the_models_are_named(
    tmp_path: Path, family: str, edit: Callable[[Tensors], Tensors], named: list[str]
) -> None:
    path = write_model(tmp_path, PLAIN[family]())
    edit_weights(path, edit)
    for said in refusals(path):
        assert all(word in said for word in (str(path), *named)), said


def test_experts_of_which_one_lacks_a_tensor_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path, PLAIN["qwen3 experts"]())
    edit_weights(path, without("experts.1.up_proj"))
    assert str(path) in refusals(path)[0]


def test_more_layers_and_a_head_of_its_own_are_missed(tmp_path: Path) -> None:
    path = write_model(tmp_path, PLAIN["qwen2 tied"]())
    edit_json(path / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    assert all("12 missing (model.layers.2." in said for said in refusals(path))
    edit_json(path / "config.json", num_hidden_layers=2, layer_types=["full_attention"] * 2, tie_word_embeddings=False)
    assert all("1 missing (lm_head.weight)" in said for said in refusals(path))


@pytest.mark.parametrize("family", ["llama", "qwen2 tied", "qwen3 experts", "olmo2", "gpt2"])
@pytest.mark.parametrize(
    "edit",
    [
        lambda t: {n.removeprefix("model.").removeprefix("transformer."): tensor for n, tensor in t.items()},
        lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
        lambda t: t | {"lm_head.weight": next(v for n, v in t.items() if "embed" in n or "wte" in n).clone()},
        lambda t: t | {"lm_head.weight": torch.randn(343, 32)},
    ],
    ids=["without prefix", "old buffers", "stored twice", "a head beside what it is tied to"],
)
def test_what_transformers_maps_is_let_pass(tmp_path: Path, family: str, edit: Callable[[Tensors], Tensors]) -> None:
    path = write_model(tmp_path, PLAIN[family]())
    edit_weights(path, edit)
    check_checkpoint(resolve_model(str(path)), plain_head=True, by_transformers=True, trained=True)
    model = load_causal_lm(path, dtype="float32", device=CPU)
    assert load_head(path, dtype="float32").equal(model.get_output_embeddings().weight)


def test_shards_are_read_and_missed(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(write_model(tmp_path / "one", PLAIN["qwen2"]()))
    path = tmp_path / "shards"
    model.save_pretrained(path, max_shard_size="50kB")
    check_checkpoint(resolve_model(str(path)), plain_head=True, by_transformers=True)
    assert load_head(path, dtype="float32").equal(model.get_output_embeddings().weight)
    last = max(path.glob("*.safetensors"))
    last.unlink()
    assert all(f"{last.name!r}, which is not there" in said for said in refusals(path))


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders_are_refused(tmp_path: Path, family: str) -> None:
    assert all("no causal language model" in said for said in refusals(write_model(tmp_path, ENCODERS[family]())))


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path, PLAIN["llama"]())
    T5Config().save_pretrained(path)
    assert all("T5Config describes no causal language model" in said for said in refusals(path))
    (path / "config.json").write_text(json.dumps({"model_type": "new", "auto_map": {"AutoConfig": "new.New"}}))
    assert all("code of its own (auto_map), which is never run" in said for said in refusals(path))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "unheard-of"])
def test_quantised_weights_are_not_trained(tmp_path: Path, method: str) -> None:
    path = write_model(tmp_path, PLAIN["llama"]())
    edit_json(path / "config.json", quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})
    assert all(f"quantised (quantization_config: {method})" in said for said in refusals(path, trained=True))
    # vLLM has readers of its own.
    check_checkpoint(path, plain_head=True, by_transformers=False)
    if method in ("gptq", "bitsandbytes"):
        assert all("is not installed" in said for said in refusals(path))


@pytest.mark.parametrize("file", [WEIGHTS, "config.json"])
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "a pointer of git-lfs"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a page of HTML"),
        (b"", "is empty"),
        (b"\x08\0\0\0\0\0\0\0garbage!", "download it again"),
        (b"\xff" * 64, "download it again"),
    ],
)
def test_what_stands_for_a_file_is_named(tmp_path: Path, file: str, content: bytes, named: str) -> None:
    path = write_model(tmp_path, PLAIN["llama"]())
    (path / file).write_bytes(content)
    for said in refusals(path):
        assert str(path / file) in said
        assert named in said


@pytest.mark.parametrize(("cut", "named"), [(-40, "cut short"), (100, "no readable safetensors"), (4, "no readable")])
def test_cut_weights_are_named(tmp_path: Path, cut: int, named: str) -> None:
    path = write_model(tmp_path, PLAIN["llama"]())
    (path / WEIGHTS).write_bytes((path / WEIGHTS).read_bytes()[:cut])
    assert all(named in said for said in refusals(path))


def test_adapters_are_no_models(tmp_path: Path) -> None:
    path = write_model(tmp_path, PLAIN["llama"]())
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter beside a model"):
        resolve_model(str(path))
    (path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"an adapter, no model; merge .*RUN/distill/model"):
        resolve_model(str(path))


@pytest.mark.parametrize("family", ["bloom", "mamba2", "gpt2"])
def test_models_with_and_without_a_number_of_positions_generate(tmp_path: Path, family: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1}
    made = {**PLAIN, "mamba2": lambda: Mamba2Config(vocab_size=343, chunk_size=16, pad_token_id=0, **sizes)}
    path = write_model(tmp_path, made[family]())
    engine = HFEngine(str(path), dtype="float32", device=CPU)
    prompt = Prompt(id="1", question="q", gold=None, ids=torch.arange(3, 9).int().numpy())
    (rollout,) = engine.generate([prompt], SamplingSection(max_new_tokens=3), seed=0)
    assert 1 <= len(rollout.ids) <= 3
