"""Packing is refused for models whose packed sequences see each other, whatever they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from tests.unit.models.families import write_model
from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.errors import ModelError
from vcrd_ray.models.student import Student
from vcrd_ray.training.sft import check_packing

SIZES: dict[str, Any] = {
    "vocab_size": 343,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
APART: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
}
TOGETHER: dict[str, dict[str, Any]] = {
    # Linear attention; convolutions, positions of the model's own counting, a bias by distance.
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "bloom": {"n_head": 4, "n_layer": 2},
}


def student_of(kind: str, settings: dict[str, Any], folder: Path, *, lora: LoraSection | None) -> Student:
    write_model(folder, CONFIG_MAPPING[kind](**{**SIZES, **settings}))
    section = StudentSection.model_validate({"path": str(folder)})
    return Student(section, lora=lora, train_head=False, device=torch.device("cpu"), seed=0)


@pytest.mark.parametrize("kind", APART)
def test_models_that_keep_sequences_apart_may_pack(kind: str, tmp_path: Path) -> None:
    student = student_of(kind, APART[kind], tmp_path, lora=None)
    state = torch.get_rng_state()
    check_packing(student.train())
    assert student.training and torch.equal(torch.get_rng_state(), state)


def test_dropout_of_adapters_is_no_difference(tmp_path: Path) -> None:
    check_packing(student_of("llama", {}, tmp_path, lora=LoraSection(dropout=0.5)).train())


@pytest.mark.parametrize("kind", TOGETHER)
def test_models_that_would_mix_them_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"packed sequences see each other, by .* set sft\.packing false"):
        check_packing(student_of(kind, TOGETHER[kind], tmp_path, lora=None))
