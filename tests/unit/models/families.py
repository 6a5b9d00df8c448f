"""Small random checkpoints of many architectures, with the tiny world's tokenizer beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from vcrd_ray.models.checkpoint_files import resolve_model

WEIGHTS = "model.safetensors"
CPU = torch.device("cpu")
_IDS = {"vocab_size": 343, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    **_IDS,
    "pad_token_id": 0,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_GPT2 = {**_IDS, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256}
_ENCODER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}

PLAIN: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**_SIZES),
    "qwen2": lambda: hf.Qwen2Config(**_SIZES),
    "qwen2 tied": lambda: hf.Qwen2Config(**_SIZES, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**_SIZES, head_dim=16),
    "qwen3 experts": lambda: hf.Qwen3MoeConfig(
        **_SIZES, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "mistral": lambda: hf.MistralConfig(**_SIZES),
    "phi3": lambda: hf.Phi3Config(**_SIZES),
    "olmo2": lambda: hf.Olmo2Config(**_SIZES),
    "gemma3": lambda: hf.Gemma3TextConfig(**_SIZES, head_dim=16),
    "gemma2 without cap": lambda: hf.Gemma2Config(**_SIZES, head_dim=16, final_logit_softcapping=None),
    "granite of scale 1": lambda: hf.GraniteConfig(**_SIZES, logits_scaling=1.0),
    "gpt2": lambda: hf.GPT2Config(**_GPT2),
    "opt": lambda: hf.OPTConfig(**_IDS, **_ENCODER, ffn_dim=48, word_embed_proj_dim=32, pad_token_id=0),
    "bloom": lambda: hf.BloomConfig(**_IDS, hidden_size=32, n_layer=2, n_head=2),
}
"""Logits are the output embedding times the final states."""
MORE: dict[str, Callable[[], Any]] = {
    "gemma2": lambda: hf.Gemma2Config(**_SIZES, head_dim=16, final_logit_softcapping=5.0),
    "gemma2 of a cap above its logits": lambda: hf.Gemma2Config(**_SIZES, head_dim=16, final_logit_softcapping=500.0),
    "phi": lambda: hf.PhiConfig(**_SIZES),
    "gptj": lambda: hf.GPTJConfig(**_GPT2, rotary_dim=8),
    "cohere": lambda: hf.CohereConfig(**_SIZES, logit_scale=0.0625),
    "granite": lambda: hf.GraniteConfig(**_SIZES, logits_scaling=8.0),
    "granite of a scale near 1": lambda: hf.GraniteConfig(**_SIZES, logits_scaling=1.1),
}
"""They are capped, biased or scaled behind that."""
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertConfig(vocab_size=343, **_ENCODER),
    "roberta": lambda: hf.RobertaConfig(vocab_size=343, **_ENCODER),
    "electra": lambda: hf.ElectraConfig(vocab_size=343, embedding_size=32, **_ENCODER),
}


def write_model(directory: Path, config: Any, *, seed: int = 0, spread: float | None = 0.2) -> Path:
    """A random causal language model of a config; without `spread` as transformers begins it."""
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config).float()
    if spread is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, spread)
                elif "bias" in name:
                    parameter.normal_()
    model.save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_model("tiny:teacher") / file, directory / file)
    return directory


def edit_weights(directory: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Store what `edit` makes of a checkpoint's tensors."""
    save_file(edit(load_file(directory / WEIGHTS)), directory / WEIGHTS, metadata={"format": "pt"})


def edit_json(file: Path, **changes: Any) -> None:
    """Set fields of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
