"""What is exported is what was trained: merged in float32 and cast once, under the names of the base, experts included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

from tests.conftest import STUDENT
from tests.unit.models.families import write_model
from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.errors import CheckpointError, ModelError
from vcrd_ray.models.checkpoint_files import load_causal_lm
from vcrd_ray.models.merging import plain_name
from vcrd_ray.models.student import Student, _check_loads

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 343,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SMALL),
    "tied": lambda: transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SMALL, **EXPERTS, head_dim=8, decoder_sparse_step=1),
    "mixtral": lambda: transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": lambda: transformers.GptOssConfig(**SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **SMALL,
        **EXPERTS,
        head_dim=8,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"],
    ),
}
EXPERTS_ADAPTED = ("qwen3_moe", "mixtral", "qwen3_next")


def checkpoint(directory: Path, architecture: str) -> Path:
    return write_model(directory, ARCHITECTURES[architecture](), spread=None)


def trained(path: Path | str, *, dropout: float = 0.0, **section: Any) -> Student:
    """A student whose adapters have learnt something."""
    student = Student(
        StudentSection(path=str(path), **section),
        lora=LoraSection(r=2, dropout=dropout),
        train_head=False,
        device=CPU,
        seed=0,
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in student.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return student


IDS = torch.arange(5, 45)[None]


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, use_cache=False).logits.float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_exported_model_and_adapter_are_what_was_trained(tmp_path: Path, architecture: str) -> None:
    base = checkpoint(tmp_path / "base", architecture)
    student = trained(base)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    assert student.export(tmp_path / "run") is None, "float32 loses nothing"
    assert all(tensor.equal(before[name]) for name, tensor in student.state_dict().items()), "the student moved"
    wanted, start = logits(student.model), load_causal_lm(base, dtype="float32", device=CPU)
    assert (wanted - logits(start)).abs().max() > 1e-2
    merged = load_causal_lm(tmp_path / "run" / "model", dtype="float32", device=CPU)
    torch.testing.assert_close(logits(merged), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(start, str(tmp_path / "run" / "adapter")).eval()), wanted, rtol=1e-5, atol=1e-5
    )
    stored = [load_file(folder / "model.safetensors").keys() for folder in (base, tmp_path / "run" / "model")]
    assert stored[0] == stored[1]


@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_a_version_of_the_merged_student_leaves_it_as_it_was(tmp_path: Path, architecture: str) -> None:
    student = trained(checkpoint(tmp_path / "base", architecture), dtype="bfloat16")
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    (tmp_path / "version").mkdir()
    student.write_version(tmp_path / "version", merged=True)
    assert all(tensor.equal(before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("architecture", ["llama", "tied", "qwen3_moe"])
def test_float32_keeps_what_bfloat16_rounds_away(tmp_path: Path, architecture: str) -> None:
    base = checkpoint(tmp_path / "base", architecture)
    coarse = trained(base, dtype="bfloat16").export(tmp_path / "coarse")
    assert coarse is not None and coarse.dtype == "bfloat16" and coarse.max_logit_learnt > 0
    assert 0 < coarse.max_logit_difference < coarse.max_logit_learnt and 0 <= coarse.kl < 1e-2
    assert "bfloat16" in coarse.say() and "student.export_dtype" in coarse.say()
    assert trained(base, dtype="bfloat16", export_dtype="float32").export(tmp_path / "fine") is None
    dtypes = []
    for name in ("coarse", "fine"):
        folder = tmp_path / name / "model"
        tensors = load_file(folder / "model.safetensors").values()
        dtypes.append(({t.dtype for t in tensors}, json.loads((folder / "config.json").read_text())["dtype"]))
    assert dtypes == [({torch.bfloat16}, "bfloat16"), ({torch.float32}, "float32")]
    start = load_causal_lm(base, dtype="bfloat16", device=CPU).float()
    adapted = PeftModel.from_pretrained(start, str(tmp_path / "fine" / "adapter")).eval().float()
    fine = load_causal_lm(tmp_path / "fine" / "model", dtype="float32", device=CPU)
    torch.testing.assert_close(logits(fine), logits(adapted), rtol=1e-5, atol=1e-5)


def test_full_fine_tuning_may_be_exported_in_another_type(tmp_path: Path) -> None:
    section = StudentSection(path=STUDENT, export_dtype="bfloat16")
    student = Student(section, lora=None, train_head=True, device=CPU, seed=0)
    student.export(tmp_path)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert next(student.parameters()).dtype == torch.float32


@pytest.mark.parametrize("architecture", EXPERTS_ADAPTED)
def test_dropout_that_experts_cannot_have_is_refused_in_one_line(tmp_path: Path, architecture: str) -> None:
    with pytest.raises(ModelError, match=r"set distill\.lora\.dropout to 0") as caught:
        trained(checkpoint(tmp_path / "base", architecture), dropout=0.05)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "foreign"])
def test_a_written_model_with_other_tensors_than_its_own_is_refused(tmp_path: Path, change: str) -> None:
    from safetensors.torch import save_file

    base, model = checkpoint(tmp_path / "base", "llama"), checkpoint(tmp_path / "model", "llama")
    _check_loads(model, base)
    tensors = load_file(model / "model.safetensors")
    if change == "missing":
        del tensors["model.layers.0.mlp.up_proj.weight"]
    else:
        tensors["model.layers.0.mlp.experts.base_layer.down_proj"] = torch.zeros(2)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 tensors are missing or foreign"):
        _check_loads(model, base)


def test_names_lose_every_layer_of_adapters() -> None:
    assert plain_name("a.mlp.experts.base_layer.base_layer.gate_up_proj") == "a.mlp.experts.gate_up_proj"
    assert plain_name("a.q_proj.base_layer.weight") == "a.q_proj.weight"
