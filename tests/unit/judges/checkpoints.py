"""Small random judge checkpoints, written in the published layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from vcrd_ray.judges.packed import PackedJudge
from vcrd_ray.types import JudgeRequest

HIDDEN = 48
BOS, EOS, BLANK_LINE, SEPARATOR = 0, 1, 258, 259
WEIGHTS = "model.safetensors"
CHAT = (
    "{% for m in messages %}<bos>{{ m.role }}\n{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant\n{% endif %}"
)


def byte_tokenizer(*, bos: bool = True, separator: bool = True, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token a byte behind two special tokens, one for a blank line, and a step separator."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<bos>", "<eos>", *alphabet])} | {"ĊĊ": BLANK_LINE}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>", **({"bos_token": "<bos>"} if bos else {})}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>"] if separator else []})
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def random_state(seed: int = 0, **changes: Any) -> tuple[Qwen2Config, dict[str, torch.Tensor]]:
    """A causal model whose hidden states vary enough that small differences are errors and not luck."""
    config = Qwen2Config(
        **{
            "vocab_size": 260,
            "hidden_size": HIDDEN,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 192,
            "initializer_range": 0.3,
        }
        | changes
    )
    torch.manual_seed(seed)
    return config, dict(Qwen2ForCausalLM(config).state_dict())


def value_head_tensors() -> dict[str, torch.Tensor]:
    return {
        "v_head.summary.weight": torch.randn(1, HIDDEN) * 2 / HIDDEN**0.5,
        "v_head.summary.bias": torch.tensor([0.5]),
    }


def two_label_tensors() -> dict[str, torch.Tensor]:
    return {
        "score.0.weight": torch.randn(HIDDEN, HIDDEN) / HIDDEN**0.5,
        "score.0.bias": torch.randn(HIDDEN) / 4,
        "score.2.weight": torch.randn(2, HIDDEN) * 2 / HIDDEN**0.5,
        "score.2.bias": torch.tensor([0.2, -0.1]),
    }


def write_checkpoint(
    directory: Path,
    head: Callable[[], dict[str, torch.Tensor]] = value_head_tensors,
    *,
    shards: int = 1,
    prefix: str = "",
    tokenizer: PreTrainedTokenizerFast | None = None,
    **changes: Any,
) -> Path:
    """A judge with the head's tensors beside the causal model's."""
    config, state = random_state(**changes)
    state |= head()
    directory.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(directory)
    (tokenizer or byte_tokenizer()).save_pretrained(directory)
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


def ragged_request(agreement: float = 0.3) -> JudgeRequest:
    """Five trajectories of 1 to 20 tokens, some of them blank lines; prompts of different lengths, one asked twice."""
    rng = np.random.default_rng(0)
    responses = [rng.integers(2, 258, size=n).astype(np.int32) for n in (7, 20, 1, 13, 4)]
    for response, at in ((0, 3), (1, 5), (1, 6), (3, 12)):
        responses[response][at] = BLANK_LINE
    proposals = [np.where(rng.random(len(r)) < agreement, r, 2 + (r + 5) % 256).astype(np.int32) for r in responses]
    questions = ("1+1?", "How many pens?", "x", "1+1?", "Ann has 12 pens, gets 7.")
    return JudgeRequest(questions=questions, responses=tuple(responses), proposals=tuple(proposals))


def flat(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    return np.concatenate(arrays)


def branch_tokens(request: JudgeRequest) -> list[int]:
    return np.flatnonzero(flat(request.responses) != flat(request.proposals)).tolist()


ROUNDING = 5e-5
"""Largest difference that float32 makes between two orders of the same sums, for logits below 10: processors differ
(up to 1.3e-5 was seen on one where another showed 5e-6), and a position seen wrongly moves logits by whole units."""


def differences(judge: PackedJudge, request: JudgeRequest) -> np.ndarray:
    """Packed minus separate logits, own tokens and proposals of every row. [2, N]"""
    scores = judge.score(request)
    own, other = judge.score_separately(request, range(len(scores.trunk_logit)))
    assert np.std(own) > 0.3 and np.std(other) > 0.3
    return np.abs([scores.trunk_logit - own, scores.branch_logit - other])
