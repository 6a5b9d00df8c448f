"""Reads a judge's checkpoint from disk: safetensors only, backbone only, every mistake named. Scores nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open

from vcrd_ray.errors import ModelError
from vcrd_ray.models.causal_lm import HARMLESS
from vcrd_ray.models.checkpoint_files import load_tokenizer, model_fingerprint, tokenizer_fingerprint
from vcrd_ray.models.imports import hidden
from vcrd_ray.models.weight_files import first_line, read_header, weight_files

with hidden("sklearn"):
    from transformers import MODEL_MAPPING, AutoConfig

_WRAPPER_PREFIX = "pretrained_model."
"""What some wrappers write before the names of the model that they wrap."""


def read_tensors(directory: Path, *, with_lm_head: bool = False) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint directory, wrapper prefix removed; the language model head's only if asked for.

    Raises:
        ModelError: no readable safetensors in it.
    """
    tensors = {}
    for file in weight_files(directory):
        read_header(file)  # names what is damaged
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 (`safe_open` is no dict)
                    name = key.removeprefix(_WRAPPER_PREFIX)
                    if with_lm_head or not name.startswith("lm_head."):
                        tensors[name] = opened.get_tensor(key)
        except SafetensorError as error:
            raise ModelError(f"judge {directory}: {file.name} cannot be read: {first_line(error)}") from None
    return tensors


def take_tensor(
    directory: Path, tensors: dict[str, torch.Tensor], name: str, *, shape: Sequence[int], needed_by: str
) -> torch.Tensor:
    """Take one tensor out, of exactly this shape.

    Raises:
        ModelError: it is missing or of another shape.
    """
    if name not in tensors:
        raise ModelError(f"judge {directory}: no tensor {name!r} in its weights; {needed_by}")
    tensor = tensors.pop(name)
    if tuple(tensor.shape) != tuple(shape):
        raise ModelError(
            f"judge {directory}: {name!r} has shape {list(tensor.shape)}, expected {list(shape)}; {needed_by}"
        )
    return tensor


def judge_fingerprint(directory: Path, *parts: object) -> str:
    """Identity of what answers: the checkpoint, its tokenizer, and all else that scores depend on, as short text each."""
    whole = [
        model_fingerprint(directory),
        tokenizer_fingerprint(load_tokenizer(directory, pads=False)),
        *map(repr, parts),
    ]
    return hashlib.sha256("\n".join(whole).encode()).hexdigest()[:16]


def check_readable(
    what: str, ids: npt.NDArray[np.integer], *, num_embeddings: int, num_positions: int, max_positions: int
) -> None:
    """Refuse what a judge cannot read.

    Raises:
        ModelError: an id without embedding, or more tokens than positions; names `what`.
    """
    foreign = ids[(ids < 0) | (ids >= num_embeddings)]
    if foreign.size:
        raise ModelError(
            f"judge request, {what}: token id {int(foreign.flat[0])} is outside the judge's {num_embeddings} embeddings; use a"
            " judge of the policy's tokenizer family, or the weighting `teacher_prob`, which needs no judge"
        )
    if num_positions > max_positions:
        raise ModelError(
            f"judge request, {what}: {num_positions} tokens with the prompt, but the judge has {max_positions} positions;"
            " shorten prompts or responses"
        )


def read_model_config(directory: Path, *, packed: bool) -> Any:
    """The Hugging Face config of a causal model.

    Args:
        directory: where config.json is.
        packed: the model will be run with packed scoring's own attention.

    Raises:
        ModelError: no such config, or a model that packed scoring cannot serve.
    """
    if not directory.is_dir():
        raise ModelError(f"judge {directory}: no such directory; give a downloaded checkpoint")
    if not (directory / "config.json").is_file():
        raise ModelError(f"judge {directory}: no config.json in it; give the folder of a Hugging Face checkpoint")
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        if type(config) not in MODEL_MAPPING:
            raise ValueError(f"{type(config).__name__} is no language model")
    except (ValueError, KeyError, OSError) as error:
        raise ModelError(f"judge {directory}: config.json is not usable: {error}") from None
    other = {*(getattr(config, "layer_types", None) or ())} - {"full_attention"}
    if packed and (other or getattr(config, "sliding_window", None) is not None):
        raise ModelError(
            f"judge {directory}: it uses sliding-window or chunked attention ({', '.join(sorted(other)) or 'sliding_window'}),"
            " which packed scoring would switch off; set `use_sliding_window` to false (or `sliding_window` to null) in"
            " config.json if every trajectory is shorter than the window, or use another judge"
        )
    if packed and getattr(config, "attn_logit_softcapping", None) is not None:
        raise ModelError(
            f"judge {directory}: it caps attention scores, which packed scoring does not; use another judge"
        )
    return config


def build_backbone(directory: Path, config: Any, tensors: dict[str, torch.Tensor], *, dtype: str) -> Any:
    """The Hugging Face backbone with exactly these weights, in evaluation mode.

    Args:
        directory: named in errors.
        config: of `read_model_config`.
        tensors: of the backbone; a missing one is an error, never a random start.
        dtype: what its weights are cast to ("float32", "bfloat16").

    Raises:
        ModelError: the weights are not those of the config.
    """
    try:
        backbone, info = MODEL_MAPPING[type(config)].from_pretrained(
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
    foreign = sorted(name for name in info["unexpected_keys"] if not name.endswith(HARMLESS))
    if foreign:
        raise ModelError(
            f"judge {directory}: {len(foreign)} tensors belong to no part of the judge, for example {foreign[0]!r}; merge"
            " adapters into the weights, or use the judge.type of this checkpoint"
        )
    return backbone.eval()
