"""Checkpoints on disk or hub -> models, tokenizers, fingerprints. Knows nothing of losses, schedules or Ray.

Safetensors only, no remote code: a checkpoint is data, never a program.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from vcrd_ray.errors import ModelError
from vcrd_ray.models import generation_config
from vcrd_ray.models.imports import hidden
from vcrd_ray.models.weight_files import disguise, first_line, read_header, read_json, stored_tensors, weight_files
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
    config, adapter = directory / "config.json", directory / "adapter_config.json"
    if adapter.is_file():
        what = "an adapter beside a model, and only one would be loaded" if config.is_file() else "an adapter, no model"
        raise ModelError(
            f"{directory}: {adapter.name} in it says that it is {what}; merge the adapter into its base model (PEFT's"
            " merge_and_unload; of a run, give RUN/distill/model) and give the result"
        )
    if not config.is_file():
        raise ModelError(f"{directory}: no config.json in it; give a directory that save_pretrained wrote")
    read_json(config)
    weight_files(directory)
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


def load_tokenizer(path: Path, *, pads: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a checkpoint.

    Args:
        path: the checkpoint's directory.
        pads: its padding goes through the model; else a token that its files lack and transformers adds is let pass.

    Raises:
        ModelError: there is none, it has no end-of-sequence token, or a token without a row in the model's embedding.
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
    except Exception as error:  # its libraries raise many kinds, bare ones too
        files = (path / name for name in (*_TOKENIZER_FILES, "tokenizer_config.json"))
        damaged = [f"{file.name} {disguise(file)}" for file in files if file.is_file() and disguise(file)]
        raise ModelError(
            f"{path}: its tokenizer cannot be loaded: {', '.join(damaged) or first_line(error)}; save or download it again"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{path}: its tokenizer has no eos_token; set one in tokenizer_config.json")
    _check_rows(path, tokenizer, pads=pads)
    return tokenizer


def _check_rows(path: Path, tokenizer: PreTrainedTokenizerBase, *, pads: bool) -> None:
    """Refuse tokens that the model beside the tokenizer has no embedding of: they would be read out of bounds."""
    from transformers import AutoConfig

    try:
        num_rows = AutoConfig.from_pretrained(str(path), trust_remote_code=False).get_text_config().vocab_size
    except (OSError, ValueError, KeyError, AttributeError):
        return  # no model beside it, or one that cannot be loaded and says so itself
    beyond = [(number, token) for token, number in tokenizer.get_vocab().items() if number >= num_rows]
    if not beyond:
        return
    file = path / "tokenizer.json"
    own = file.read_text(encoding="utf-8") if file.is_file() else None
    stored = [(n, t) for n, t in beyond if own is None or json.dumps(t, ensure_ascii=False) in own]
    if stored:
        number, token = max(stored)
        raise ModelError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens, the last {token!r} with id {number}, and the model's embedding"
            f" {num_rows} rows; use the tokenizer that the model was trained with, or save the model again after"
            " resize_token_embeddings"
        )
    if pads:
        raise ModelError(
            f"{path}: transformers adds {max(beyond)[1]!r} to its tokenizer, behind the {num_rows} rows of the model's"
            " embedding, because tokenizer_config.json leaves out pad_token, unk_token or eos_token; set them to tokens that it"
            " has"
        )


def load_causal_lm(path: Path, *, dtype: str, device: torch.device, trained: bool = False) -> PreTrainedModel:
    """A causal language model in evaluation mode: all of its weights are the checkpoint's, and all of the checkpoint's are its.

    Args:
        path: a directory of `resolve_model`.
        dtype: of its weights.
        device: where they go.
        trained: it is the student, whose weights must not be quantised.

    Raises:
        ModelError: the files do not make a model.
    """
    from vcrd_ray.models.causal_lm import check_causal, check_loading, check_quantization, read_causal_config

    with hidden("sklearn"):
        from transformers import AutoModelForCausalLM

    check_quantization(path, read_causal_config(path), trained=trained)
    for file in weight_files(path):
        read_header(file)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(path),
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be loaded as a causal language model: {first_line(error)}") from error
    check_loading(path, info)
    generation_config.forget(model)
    loaded: PreTrainedModel = model.to(device).eval()
    check_causal(loaded, str(path))
    return loaded


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


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash over vocabulary, special tokens and chat template."""
    content = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_ids), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def load_head(path: Path, *, dtype: str) -> torch.Tensor:
    """The output embedding of a checkpoint, without loading the rest of it. [V_padded, d]

    Raises:
        ModelError: neither it nor an embedding that it is tied to is in it.
    """
    from vcrd_ray.models.causal_lm import stored_head

    file, name = stored_head(path)
    with safe_open(file, framework="pt") as tensors:
        head: torch.Tensor = tensors.get_tensor(name).to(getattr(torch, dtype))
        return head


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
