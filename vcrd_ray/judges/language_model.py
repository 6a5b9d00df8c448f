"""A causal language model, head included, for judges that read its distribution. Scores nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vcrd_ray.errors import ModelError
from vcrd_ray.judges.checkpoint import build_backbone, check_readable, read_model_config, read_tensors, take_tensor
from vcrd_ray.models.batching import pad_right
from vcrd_ray.models.causal_lm import max_positions
from vcrd_ray.models.imports import hidden
from vcrd_ray.models.output_head import check_plain_head
from vcrd_ray.types import IntArray

with hidden("sklearn"):
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LanguageModel:
    """A causal backbone and its head, on one device."""

    backbone: Any
    head: Float[Tensor, "v d"]
    """In the type it is stored in: logits are made in float32."""

    @property
    def num_tokens(self) -> int:
        """Ids below this have an embedding."""
        return int(self.backbone.get_input_embeddings().num_embeddings)

    @property
    def num_positions(self) -> int:
        """Tokens it can read at most."""
        return max_positions(self.backbone.config)

    def states(self, inputs: Sequence[IntArray]) -> Float[Tensor, "S L d"]:
        """Final states over ids padded on the right, which causal attention never looks at."""
        ids = torch.from_numpy(pad_right(inputs)).to(self.backbone.device)
        hidden: Tensor = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    def check(self, what: str, ids: npt.NDArray[np.integer], *, num_positions: int) -> None:
        """Refuse what it cannot read: see `checkpoint.check_readable`."""
        check_readable(
            what, ids, num_embeddings=self.num_tokens, num_positions=num_positions, max_positions=self.num_positions
        )


def load_language_model(directory: Path, *, dtype: str, device: str | torch.device) -> LanguageModel:
    """The backbone in `dtype`, and its head: the embedding where config.json ties them and no other is stored.

    Raises:
        ModelError: no causal model there, or one whose logits are not its head times its states.
    """
    config, tensors = read_model_config(directory, packed=False), read_tensors(directory, with_lm_head=True)
    more = [name for name in tensors if name.startswith("lm_head.") and name != "lm_head.weight"]
    if more:
        raise ModelError(
            f"judge {directory}: its logits are more than lm_head.weight times the final states ({', '.join(more)}), which is"
            " not supported; use a judge of another architecture, such as Qwen2 or Llama"
        )
    tied = config.tie_word_embeddings and "lm_head.weight" not in tensors
    head = None
    if not tied:
        needed_by = (
            "a judge that is a language model needs its head [vocabulary, d]; download the checkpoint again, or set"
            " tie_word_embeddings in config.json where the model shares it with its embedding"
        )
        shape = (config.vocab_size, config.hidden_size)
        head = take_tensor(directory, tensors, "lm_head.weight", shape=shape, needed_by=needed_by)
    backbone = build_backbone(directory, config, tensors, dtype=dtype).to(device)
    if head is None:
        head = backbone.get_input_embeddings().weight.detach()
    model = LanguageModel(backbone=backbone, head=head.to(device))
    check_plain_head(_causal(config, model), f"judge {directory}")
    return model


def _causal(config: Any, model: LanguageModel) -> Any:
    """The same backbone and head as the causal model that transformers makes of the config."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        causal = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    setattr(causal, causal.base_model_prefix, model.backbone)
    causal.get_output_embeddings().weight = nn.Parameter(model.head.to(model.backbone.dtype), requires_grad=False)
    return causal.eval()
