"""Whether a checkpoint makes the causal language model that its config.json describes. Loads no weights itself.

transformers gives tensors that a checkpoint lacks random values and leaves out those that it does not know, with a warning at
most. Here both are errors: of a model that was loaded by what its loading reports, and before that by the same loader
on the meta device, which is given the names and shapes in the headers of the files, so that whatever it maps is mapped.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vcrd_ray.errors import ModelError
from vcrd_ray.models.imports import hidden
from vcrd_ray.models.output_head import ROUNDING, check_plain_head
from vcrd_ray.models.weight_files import TensorHeader, first_line, read_header, read_json, weight_files

with hidden("sklearn"):
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
    from transformers.utils import logging as transformers_logging

HARMLESS = ("rotary_emb.inv_freq",)
"""Endings of tensors that older checkpoints carry and the config determines."""
_NAMED = 3
"""Tensors that an error names of each kind."""
_NO_BOUND = 2**31


def read_causal_config(directory: Path) -> Any:
    """The Hugging Face config of a causal language model.

    Raises:
        ModelError: no such config.
    """
    content = read_json(directory / "config.json")
    try:
        config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        own_code = "; it needs code of its own (auto_map), which is never run" if "auto_map" in content else ""
        raise ModelError(f"{directory}: its config.json is not usable: {first_line(error)}{own_code}") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{directory}: {type(config).__name__} describes no causal language model; use a decoder, such as Qwen2"
        )
    return config


def max_positions(config: Any) -> int:
    """Tokens that a model can read; without bound where positions are not counted (ALiBi, recurrent states)."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or _NO_BOUND)


def check_checkpoint(directory: Path, *, plain_head: bool, by_transformers: bool, trained: bool = False) -> None:
    """Refuse what `load_causal_lm` would refuse, from config.json and the headers of the files.

    Args:
        directory: of `resolve_model`.
        plain_head: its states and output embedding are used in the place of its logits: see `check_plain_head`.
        by_transformers: that reads it; else vLLM, which has readers of its own for quantised weights.
        trained: it is the student.

    Raises:
        ModelError: says what is wrong with the checkpoint.
    """
    config = read_causal_config(directory)
    if trained or by_transformers:
        check_quantization(directory, config, trained=trained)
    headers = [read_header(file) for file in weight_files(directory)]
    # The names of quantised weights are those of their format.
    if getattr(config, "quantization_config", None) is None:
        check_loading(directory, _report(directory, config, headers))
    check_architecture(directory, config, plain_head=plain_head)


def not_its_own(directory: Path) -> set[str]:
    """Tensors that a checkpoint lacks, has too many of or has in another shape, by what the headers of its files say.

    Raises:
        ModelError: it makes no causal language model.
    """
    report = _report(directory, read_causal_config(directory), [read_header(file) for file in weight_files(directory)])
    return {*report["missing_keys"], *report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])}


def check_architecture(directory: Path, config: Any, *, plain_head: bool) -> None:
    """Refuse an encoder, and with `plain_head` a model whose logits are more than its head times its states.

    Raises:
        ModelError: names the directory.
    """
    model = _without_weights(config)
    attention = [module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", None), bool)]
    if attention and not any(attention):
        raise _encoder(directory)
    if plain_head:
        check_plain_head(model, str(directory))


def stored_head(directory: Path) -> tuple[Path, str]:
    """Where a checkpoint holds its output embedding: the file, and the tensor's own name or that of what it is tied to.

    Raises:
        ModelError: no causal language model there, or no such tensor.
    """
    model = _without_weights(read_causal_config(directory))
    prefix, head = f"{model.base_model_prefix}.", model.get_output_embeddings()
    tied = [] if head is None else [n for n, p in model.named_parameters(remove_duplicate=False) if p is head.weight]
    own_first = sorted(tied, key=lambda name: name.startswith(prefix))
    files = {name: file for file in weight_files(directory) for name in read_header(file)}
    # The prefix is left out where the backbone alone was saved.
    for name in (*own_first, *(name.removeprefix(prefix) for name in own_first)):
        if name in files:
            return files[name], name
    raise ModelError(
        f"{directory}: no {' or '.join(own_first)} in its safetensors; save it again with save_pretrained, or set"
        " teacher.transport logits"
    )


def check_quantization(directory: Path, config: Any, *, trained: bool) -> None:
    """Refuse quantised weights that are to be trained, or whose format transformers cannot read here.

    Raises:
        ModelError: names the format.
    """
    section = getattr(config, "quantization_config", None)
    if section is None:
        return
    from transformers.quantizers import AutoHfQuantizer

    found = section if isinstance(section, dict) else section.to_dict()
    name = f"{directory}: its weights are quantised (quantization_config: {found.get('quant_method')})"
    if trained:
        raise ModelError(f"{name}, which the student's must not be; use the checkpoint that it was made from")
    try:
        AutoHfQuantizer.from_config(section, pre_quantized=True).validate_environment()
    except ImportError as error:
        raise ModelError(f"{name}, and what reads them is not installed: {first_line(error)}") from error
    except ValueError as error:
        raise ModelError(f"{name} in a way that cannot be read: {first_line(error)}") from error
    except RuntimeError:
        pass  # no GPU here; there may be one where it is loaded


def check_loading(directory: Path, info: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights are not those of its checkpoint.

    Args:
        directory: named in errors.
        info: what transformers reports of the loading.

    Raises:
        ModelError: names tensors that are missing, misshapen or foreign.
    """
    shapes = {name: f"{name} {list(stored)} for {list(wanted)}" for name, stored, wanted in info["mismatched_keys"]}
    kinds = {
        "missing": sorted(set(info["missing_keys"]) - set(shapes)),
        "of another shape": sorted(shapes.values()),
        "foreign": sorted(name for name in info["unexpected_keys"] if not name.endswith(HARMLESS)),
    }
    faults = [
        f"{len(names)} {kind} ({', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''})"
        for kind, names in kinds.items()
        if names
    ]
    if faults:
        raise ModelError(
            f"{directory}: its tensors are not those of the model in its config.json: {', '.join(faults)}; download it again,"
            " or save the whole model with save_pretrained"
        )


@torch.no_grad()
def check_causal(model: Any, name: str) -> None:
    """Refuse a loaded model whose state at a token depends on what stands behind it.

    Raises:
        ModelError: it is an encoder.
    """
    ids = torch.arange(1, 14, device=model.device)[None] % model.get_input_embeddings().num_embeddings
    other = ids.clone()
    other[:, -1] = 0
    states, beside = (model(input_ids=i, use_cache=False).logits for i in (ids, other))
    if float((states - beside)[:, :-1].abs().max()) > ROUNDING[states.dtype] * float(states.abs().max()):
        raise _encoder(name)


def _without_weights(config: Any) -> Any:
    """The model of a config on the meta device."""
    config = copy.deepcopy(config)
    config.quantization_config = None
    # Making modules draws random numbers, which a trainer in this process would miss.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).eval()


def _encoder(name: object) -> ModelError:
    return ModelError(
        f"{name}: its tokens see what stands behind them, so it is an encoder and no causal language model; use a decoder,"
        " such as Qwen2"
    )


def _report(directory: Path, config: Any, headers: Sequence[Mapping[str, TensorHeader]]) -> Mapping[str, Any]:
    """What transformers would say of loading the tensors of these files."""
    tensors = {n: torch.empty(tensor.shape, device="meta") for header in headers for n, tensor in header.items()}
    try:
        with _silent(), torch.random.fork_rng(devices=[]):
            _, info = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except RuntimeError as error:
        raise ModelError(
            f"{directory}: its tensors do not make the model in its config.json: some that are joined on loading, such as those"
            " of experts, are missing or of another shape; download it again"
        ) from error
    found: Mapping[str, Any] = info
    return found


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' bar and its table of what is missing, which an error says in a line."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
