"""Whether a model's logits are its output embedding times its final states: what losses, teachers and scores are made of.

Some models add a bias, scale or cap their logits behind that product. Nothing here knows which: a probe asks the model.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from vcrd_ray.errors import ModelError
from vcrd_ray.method.fused import head_logits

_MAGNITUDES = (0.0, 0.1, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
"""Of probed states: none shows what is added, small ones what is scaled, large ones what is capped."""
_STAND_IN_ROWS = 64
"""Tokens of the output embedding that is made up for a model without weights."""
ROUNDING = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 4e-2}
"""By how much logits may differ from the same product in float32, as a share of the largest beside them: seen, with room."""
_MORE = "its logits are more than its output embedding times its final states"
_CURE = "use a model whose logits are its output embedding times its final states, such as Qwen2 or Llama"


class _States:
    """Final states in the place of what a decoder returns; whatever else a model looks for in it is not there."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: object) -> Tensor | None:
        return self.last_hidden_state if index == 0 else None

    def __getattr__(self, name: str) -> None:
        return None


@torch.no_grad()
def check_plain_head(model: Any, name: str) -> None:
    """Refuse a causal model whose logits are more than its output embedding times its final states.

    With weights, a short text goes through the model, and final states of several magnitudes through what follows its
    decoder. On the meta device only these, through a few rows of a made-up embedding, which takes its place; a model that
    cannot be asked that way passes, because whoever loads it will ask again.

    Args:
        model: a causal language model of transformers, in evaluation mode.
        name: named in errors.

    Raises:
        ModelError: they differ by more than rounding.
    """
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise ModelError(f"{name}: {_MORE} (a bias); {_CURE}")
    if any(parameter.is_meta for parameter in model.parameters()):
        with suppress(AttributeError, TypeError, RuntimeError):
            rows = torch.randn(_STAND_IN_ROWS, head.weight.shape[1], generator=torch.Generator().manual_seed(0))
            head.weight = nn.Parameter(rows)
            _check_head(model, name, rows)
        return
    try:
        _check_text(model, name, head.weight)
        _check_head(model, name, head.weight)
    except (AttributeError, TypeError) as error:
        raise ModelError(
            f"{name}: its logits cannot be compared with its output embedding times its final states"
            f" ({type(error).__name__}: {error}); {_CURE}"
        ) from error


def _check_text(model: Any, name: str, weight: Tensor) -> None:
    ids = torch.arange(1, 14, device=weight.device)[None] % len(weight)
    states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    _compare(model(input_ids=ids, use_cache=False).logits, states, weight, name)


def _check_head(model: Any, name: str, weight: Tensor) -> None:
    """Made-up states in the place of the decoder's."""
    states = torch.randn(1, len(_MAGNITUDES), weight.shape[1], generator=torch.Generator().manual_seed(0))
    states = (states * torch.tensor(_MAGNITUDES)[None, :, None]).to(weight.device, weight.dtype)
    ids = torch.zeros(1, len(_MAGNITUDES), dtype=torch.long, device=weight.device)
    decoder = model.get_decoder()
    before = vars(decoder).get("forward")
    decoder.forward = lambda *_, **__: _States(states)
    try:
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        del decoder.forward
        if before is not None:
            decoder.forward = before
    _compare(logits, states, weight, name)


def _compare(logits: Tensor, states: Tensor, weight: Tensor, name: str) -> None:
    ours = head_logits(states[0], weight, vocab_size=len(weight), dtype=torch.float32)
    difference, largest = (logits[0].float() - ours).abs().amax(-1), ours.abs().amax(-1)
    # Of a model whose weights are no numbers nothing can be said here.
    excess = (difference - ROUNDING[weight.dtype] * largest).nan_to_num(nan=0.0)
    if float(excess.max()) > 0:
        first = int((excess > 0).nonzero()[0])
        found = f"they differ by {float(difference[first]):.3g} where the largest is {float(largest[first]):.3g}"
        raise ModelError(f"{name}: {_MORE}: {found} (a scale, a cap or an offset); {_CURE}")
