"""Checkpoints on disk or hub -> models, tokenizers, fingerprints. Knows nothing of losses, schedules or Ray.

Safetensors only, no remote code: a checkpoint is data, never a program.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from vcrd_ray.errors import ModelError
from vcrd_ray.models.imports import hidden
from vcrd_ray.runs.storage import is_remote, local_copy
from vcrd_ray.tiny import CHECKPOINTS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY_PREFIX = "tiny:"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# Enough of each tensor to tell two checkpoints apart without reading tens of gigabytes.
_FINGERPRINT_BYTES = 65536


def resolve_model(path: str) -> Path:
    """Directory of a checkpoint given as a directory, as `tiny:NAME`, as a folder in storage or as a hub name (both copied
    here, from the hub safetensors only).

    Raises:
        ModelError: nothing there, or nothing there that is a checkpoint.
        StorageError: storage refused, or nothing is there.
    """
    if is_remote(path):
        return _check_directory(local_copy(path))
    if path.startswith(TINY_PREFIX):
        directory = CHECKPOINTS / path.removeprefix(TINY_PREFIX)
        if not directory.is_dir():
            names = sorted(p.name for p in CHECKPOINTS.iterdir() if p.is_dir())
            raise ModelError(
                f"{path}: no such shipped checkpoint; there are {', '.join(TINY_PREFIX + n for n in names)}"
            )
        return directory
    directory = Path(path).expanduser()
    if directory.is_dir():
        return _check_directory(directory.resolve())
    if directory.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        raise ModelError(f"{path}: no such directory, and no hub name either (those look like owner/name)")
    return _download(path)


def must_be_fetched(path: str) -> bool:
    """Whether a model is not on this machine: in storage, or on the hub."""
    return is_remote(path) or is_on_hub(path)


def is_on_hub(path: str) -> bool:
    """Whether a model is named as on the hub and is no directory here."""
    directory = Path(path).expanduser()
    local = directory.is_dir() or directory.is_absolute() or path.startswith((TINY_PREFIX, ".", "~"))
    return not local and path.count("/") == 1


def _check_directory(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory}: no config.json in it; give a directory that save_pretrained wrote")
    if not any(directory.glob("*.safetensors")):
        pickles = sorted(p.name for p in directory.glob("*.bin"))
        cure = "convert it with save_pretrained(safe_serialization=True)" if pickles else "is the download complete?"
        raise ModelError(f"{directory}: no *.safetensors in it ({', '.join(pickles) or 'no weights at all'}); {cure}")
    return directory


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return _check_directory(
            Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]))
        )
    except ModelError:
        raise
    except Exception as error:  # the hub client raises many kinds; all mean the same to the user
        raise ModelError(
            f"{name}: no such directory here, and the hub did not give it ({type(error).__name__}: {error});"
            " check the spelling, the network and HF_TOKEN, or download it and give the directory"
        ) from error


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a checkpoint.

    Raises:
        ModelError: there is none, or it has no end-of-sequence token.
    """
    with hidden("sklearn"):
        from transformers import AutoTokenizer

    # Without any file transformers makes an empty tokenizer of the model's type.
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{path}: no tokenizer in it (none of {', '.join(_TOKENIZER_FILES)}); save the tokenizer there too"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: its tokenizer cannot be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: its tokenizer has no eos_token; set one in tokenizer_config.json")
    return tokenizer


def load_causal_lm(path: Path, *, dtype: str, device: torch.device) -> PreTrainedModel:
    """A causal language model in evaluation mode.

    Raises:
        ModelError: the files do not make a model.
    """
    with hidden("sklearn"):
        from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded as a causal language model: {error}") from error
    return model.to(device).eval()  # type: ignore[arg-type]


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that never stand for text: judges do not score them.

    All that was added to the trained vocabulary, flagged special or not: chat markers of Qwen2.5 are not all flagged.
    """
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.added_tokens_decoder)


def token_ids_with(tokenizer: PreTrainedTokenizerBase, text: str) -> frozenset[int]:
    """Ids of the tokens that hold `text`, such as the newline that ends a step."""
    ids = range(len(tokenizer))
    return frozenset(
        i for i, token in zip(ids, tokenizer.batch_decode([[i] for i in ids]), strict=True) if text in token
    )


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Any id will do for masked positions; the tokenizer's own where it has one."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def model_fingerprint(path: Path) -> str:
    """Short hash over the configuration and the beginning of every tensor of a checkpoint."""
    digest = hashlib.sha256()
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    # Fields that depend on where and by what the checkpoint was saved, not on what it computes.
    for volatile in ("_name_or_path", "transformers_version"):
        config.pop(volatile, None)
    digest.update(json.dumps(config, sort_keys=True).encode())
    for tensor in stored_tensors(path, max_bytes=_FINGERPRINT_BYTES):
        digest.update(tensor.name.encode() + tensor.content)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a safetensors file."""

    name: str
    dtype: str
    shape: list[int]
    num_bytes: int
    content: bytes
    """All of it, or its beginning."""


def stored_tensors(directory: Path, *, max_bytes: int | None = None) -> Iterator[StoredTensor]:
    """The tensors of a directory's safetensors, by file and name, at most `max_bytes` of each read.

    From the files' headers: the library gives arrays, numpy has no bfloat16, and bytes are all that hashes need.
    """
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as raw:
            header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")))
            start = raw.tell()
            for name in sorted(n for n in header if n != "__metadata__"):
                begin, end = header[name]["data_offsets"]
                raw.seek(start + begin)
                num_bytes = end - begin
                yield StoredTensor(
                    name=name,
                    dtype=header[name]["dtype"],
                    shape=header[name]["shape"],
                    num_bytes=num_bytes,
                    content=raw.read(num_bytes if max_bytes is None else min(num_bytes, max_bytes)),
                )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash over vocabulary, special tokens and chat template."""
    content = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def load_head(path: Path, *, dtype: str) -> torch.Tensor:
    """The output embedding of a checkpoint, without loading the rest of it. [V_padded, d]

    Raises:
        ModelError: neither `lm_head.weight` nor a tied embedding is in it.
    """
    for key in ("lm_head.weight", "model.embed_tokens.weight"):
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                if key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                    head: torch.Tensor = tensors.get_tensor(key).to(getattr(torch, dtype))
                    return head
    raise ModelError(f"{path}: neither lm_head.weight nor model.embed_tokens.weight in its safetensors")


def device_for(gpus: float) -> torch.device:
    """Where a role that was given `gpus` GPUs computes.

    Raises:
        ModelError: a GPU was asked for and there is none.
    """
    if gpus <= 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelError(
            f"{gpus} GPUs asked for, but CUDA is not available to this process; set its gpus to 0 or check the node"
        )
    return torch.device("cuda", torch.cuda.current_device())
