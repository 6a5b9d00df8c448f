"""Reads a value-head judge from disk: safetensors only, backbone only, every mistake named.

Layout (Skywork-o1-Open-PRM): config.json and tokenizer of a causal model; safetensors, in one file
or sharded, with the keys of the causal model plus `v_head.summary.weight` [1, d] and
`v_head.summary.bias` [1]. Scores nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from transformers import MODEL_MAPPING, AutoConfig, AutoTokenizer

from vcrd_ray.errors import ModelError
from vcrd_ray.models import model_fingerprint

HEAD_WEIGHT, HEAD_BIAS = "v_head.summary.weight", "v_head.summary.bias"

_WRAPPER_PREFIX = "pretrained_model."
"""What some wrappers write before the names of the model that they wrap."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueHeadCheckpoint:
    """All that scoring needs of a checkpoint."""

    backbone: Any
    """Hugging Face causal backbone in evaluation mode: no language model head, SDPA attention."""
    head_weight: Float[torch.Tensor, "1 d"]
    head_bias: Float[torch.Tensor, " 1"]
    encode_prompt: Callable[[str], Sequence[int]]
    """Problem -> ids of bos + problem + newline, as the published models were trained."""
    fingerprint: str


def read_value_head_checkpoint(directory: Path, *, dtype: str) -> ValueHeadCheckpoint:
    """Read a judge; the backbone's weights in `dtype`, the head's as they are stored.

    Raises:
        ModelError: the directory does not hold such a judge; says what is wrong and the cure.
    """
    tensors = _read_tensors(_weight_files(directory))
    weight = _take_head(directory, tensors, HEAD_WEIGHT)
    bias = _take_head(directory, tensors, HEAD_BIAS)
    backbone = _build_backbone(directory, tensors, dtype)
    for name, tensor, shape in (
        (HEAD_WEIGHT, weight, (1, backbone.config.hidden_size)),
        (HEAD_BIAS, bias, (1,)),
    ):
        if tensor.shape != shape:
            raise ModelError(
                f"judge {directory}: {name!r} has shape {list(tensor.shape)}, expected"
                f" {list(shape)}; a value head gives one score a token"
            )
    return ValueHeadCheckpoint(
        backbone=backbone,
        head_weight=weight,
        head_bias=bias,
        encode_prompt=_prompt_encoder(directory),
        fingerprint=model_fingerprint(directory),
    )


def _weight_files(directory: Path) -> list[Path]:
    """The safetensors files, in the order of their names."""
    if not directory.is_dir():
        raise ModelError(f"judge {directory}: no such directory; give a downloaded checkpoint")
    if not (directory / "config.json").is_file():
        raise ModelError(f"judge {directory}: no config.json in it; give the folder of a Hugging Face checkpoint")
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise ModelError(
                f"judge {directory}: {index.name} names {absent[0]!r}, which is not there"
                f" ({len(absent)} of {len(names)} files); download the checkpoint again"
            )
        return [directory / name for name in names]
    single = directory / "model.safetensors"
    if not single.is_file():
        raise ModelError(
            f"judge {directory}: no model.safetensors and no {index.name}. Pickle weights (.bin,"
            " .pt) are refused because they can run code; convert them to safetensors"
        )
    return [single]


def _read_tensors(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """All tensors but the language model head's, wrapper prefix removed."""
    tensors = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (`safe_open` is no dict)
                    name = key.removeprefix(_WRAPPER_PREFIX)
                    if not name.startswith("lm_head."):
                        tensors[name] = opened.get_tensor(key)
        except SafetensorError as error:
            raise ModelError(f"judge: {file} is no readable safetensors file: {error}") from None
    return tensors


def _take_head(directory: Path, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    if name not in tensors:
        raise ModelError(
            f"judge {directory}: no tensor {name!r} in its weights; a value-head judge"
            f" (Skywork-o1-Open-PRM layout) needs {HEAD_WEIGHT!r} and {HEAD_BIAS!r}"
        )
    return tensors.pop(name)


def _build_backbone(directory: Path, tensors: dict[str, torch.Tensor], dtype: str) -> Any:
    """The backbone with exactly these weights: a missing one is an error, never a random start."""
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        backbone_class: Any = MODEL_MAPPING[type(config)]
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"judge {directory}: config.json is not usable: {error}") from None
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ModelError(
            f"judge {directory}: it uses sliding-window attention, which the mask of packed scoring"
            " would switch off; set `use_sliding_window` to false in config.json if every"
            " trajectory is shorter than the window, or use another judge"
        )
    try:
        backbone, info = backbone_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=getattr(torch, dtype),
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except RuntimeError as error:
        raise ModelError(f"judge {directory}: the weights do not fit config.json: {error}") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"judge {directory}: {len(missing)} weights of the backbone are missing, for example"
            f" {missing[0]!r}; the checkpoint is incomplete or of another architecture"
        )
    return backbone.eval()


def _prompt_encoder(directory: Path) -> Callable[[str], Sequence[int]]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise ModelError(f"judge {directory}: no usable tokenizer beside the weights: {error}") from None
    bos = tokenizer.bos_token
    if bos is None:
        raise ModelError(
            f"judge {directory}: its tokenizer has no bos_token, and the judge's prompt begins with"
            " it. Use the tokenizer files published with the judge (the policy's often have none),"
            " or set `bos_token` in tokenizer_config.json"
        )

    def encode(question: str) -> list[int]:
        # `bos` is written out, so a tokenizer that adds one of its own must not.
        return list(tokenizer.encode(f"{bos}{question}\n", add_special_tokens=False))

    return encode
