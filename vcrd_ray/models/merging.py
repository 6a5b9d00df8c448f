"""Adapters and their base -> the weights of one plain model, summed in float32 and cast once. Writes nothing.

PEFT merges in the type of the weights, and takes adapters out again by subtraction: in bfloat16 the first loses a part of
what was learnt, and the second moves the base. Here the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

_PROBE_TOKENS = 64


def plain_name(name: str) -> str:
    """What a tensor of the base is called where there are no adapters around it."""
    return ".".join(part for part in name.split(".") if part != "base_layer")


def base_names(causal: nn.Module) -> dict[str, str]:
    """Name in the model with adapters -> name in the base, of everything that is no adapter."""
    return {
        name: plain_name(name)
        for name in causal.state_dict()
        if not any(part.startswith("lora_") for part in name.split("."))
    }


def plain_state(causal: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor of the base with its adapters added, under its plain name; on the CPU where it is a new one.

    All ranks of a ZeRO-3 group must have gathered the parameters.
    """
    merged = {plain_name(name): weight for name, weight in _merged(causal, dtype)}
    cast: dict[tuple[int, torch.Size], torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    tensors = causal.state_dict()
    for name, plain in base_names(causal).items():
        tensor = tensors[name]
        if plain in merged:
            state[plain] = merged[plain]
        elif tensor.dtype == dtype or not tensor.is_floating_point():
            state[plain] = tensor
        else:
            # Tied tensors stay one tensor, or both would be written.
            state[plain] = cast.setdefault((tensor.data_ptr(), tensor.shape), tensor.to(dtype).cpu())
    return state


def _merged(causal: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    from peft.tuners.lora import LoraLayer

    for name, module in causal.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        # An adapter around a parameter, as those of fused experts, or around a layer with a weight.
        parameter = getattr(module, "parameter_name", "weight")
        base = getattr(module.get_base_layer(), parameter)
        with torch.no_grad(), _in_float32([base, *_adapters(module)]):
            total = base.data
            for adapter in module.active_adapters:
                total = total + module.get_delta_weight(adapter)  # type: ignore[operator]
            # A plain tensor of its own, whatever is done to the parameter behind it.
            yield f"{name}.{parameter}", total.to(dtype, copy=True).cpu()


def _adapters(module: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in module.named_parameters() if name.startswith("lora_")]


@contextmanager
def _in_float32(parameters: list[nn.Parameter]) -> Iterator[None]:
    kept = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


@dataclass(frozen=True, kw_only=True, slots=True)
class CastLoss:
    """What writing weights in a coarser type takes away, on a probe."""

    dtype: str
    kl: float
    """Mean KL divergence of a token between the trained student and the written one, in nats."""
    max_logit_difference: float
    """Between those two."""
    max_logit_learnt: float
    """Between the trained student and the one before training, to compare."""

    def say(self) -> str:
        """For a person."""
        return (
            f"the exported model is in {self.dtype}: on a probe its logits differ from the trained student's by"
            f" {self.max_logit_difference:.3g} at most (training moved them by {self.max_logit_learnt:.3g}), KL {self.kl:.2g}"
            " nats a token; student.export_dtype float32 loses nothing"
        )


@torch.no_grad()
def cast_loss(
    model: nn.Module, causal: nn.Module, state: Mapping[str, torch.Tensor], *, text_ids: list[int], dtype: torch.dtype
) -> CastLoss:
    """Compare a model with adapters with its plain state, as both would be run. Leaves it as it was.

    Args:
        model: the PEFT model around `causal`.
        text_ids: tokens of the probe.
    """
    first = next(causal.parameters())
    ids = torch.tensor([text_ids[:_PROBE_TOKENS]], device=first.device)
    written = {name: state[plain].to(first.device, first.dtype) for name, plain in base_names(causal).items()}
    was_training = model.training
    model.eval()
    try:
        trained = _logits(causal, ids)
        with model.disable_adapter():  # type: ignore[operator]
            before = _logits(causal, ids)
            exported = _logits(partial(_call_with, causal, written), ids)
    finally:
        model.train(was_training)
    logp, other = trained.log_softmax(-1), exported.log_softmax(-1)
    return CastLoss(
        dtype=str(dtype).removeprefix("torch."),
        kl=float((logp.exp() * (logp - other)).sum(-1).mean()),
        max_logit_difference=float((trained - exported).abs().max()),
        max_logit_learnt=float((trained - before).abs().max()),
    )


def _call_with(module: nn.Module, weights: dict[str, torch.Tensor], **inputs: object) -> object:
    # Tied tensors are given under each of their names.
    return torch.func.functional_call(module, weights, kwargs=inputs, tie_weights=False)


def _logits(call: Callable[..., object], ids: torch.Tensor) -> torch.Tensor:
    return call(input_ids=ids, use_cache=False).logits[0].float()  # type: ignore[attr-defined, no-any-return]
