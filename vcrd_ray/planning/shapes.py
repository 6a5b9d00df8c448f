"""A model's name -> its sizes and how many parameters stand where. Reads config.json at most, never a weight."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcrd_ray.config.plan import PlanSection, ShapeSection
from vcrd_ray.errors import ModelError
from vcrd_ray.planning.known_models import KNOWN

# Families whose layers are what ModelShape counts: grouped-query attention and a gated MLP between two RMS norms.
_BIASED = frozenset({"qwen2"})
_NORMED = frozenset({"qwen3"})
_PLAIN = frozenset({"llama", "mistral"})


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only model."""

    sizes: ShapeSection
    source: str
    """Where the sizes come from, for people."""

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.sizes.head_dim or self.sizes.hidden_size // self.sizes.num_heads

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each projection of a layer."""
        d, m = self.sizes.hidden_size, self.sizes.intermediate_size
        q, kv = self.sizes.num_heads * self.head_dim, self.sizes.num_kv_heads * self.head_dim
        return {
            **{"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d)},
            **{"gate": (d, m), "up": (d, m), "down": (m, d)},
        }

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and as many of an output head that is not tied to it."""
        return self.sizes.vocab_size * self.sizes.hidden_size

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        projections = sum(inputs * outputs for inputs, outputs in self.linears.values())
        biases = sum(self.linears[name][1] for name in "qkv") if self.sizes.qkv_bias else 0
        norms = 2 * self.sizes.hidden_size + (2 * self.head_dim if self.sizes.qk_norm else 0)
        return projections + biases + norms

    @property
    def body(self) -> int:
        """Parameters of a model without an output head."""
        return self.embedding + self.sizes.num_layers * self.layer + self.sizes.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters of the language model."""
        return self.body + (0 if self.sizes.tied else self.embedding)

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA of this rank on all projections."""
        return self.sizes.num_layers * rank * sum(sum(widths) for widths in self.linears.values())

    @property
    def kv_width(self) -> int:
        """Numbers that one token leaves in the key-value cache."""
        return 2 * self.sizes.num_layers * self.sizes.num_kv_heads * self.head_dim

    def forward_flops(self, tokens: float, context: float) -> float:
        """Of the layers, for tokens that attend to `context` others on average; the output head is counted where rows are."""
        matrices = self.sizes.num_layers * sum(inputs * outputs for inputs, outputs in self.linears.values())
        attention = 4 * self.sizes.num_layers * self.sizes.num_heads * self.head_dim * context
        return tokens * (2 * matrices + attention)


def read_shape(path: str, section: PlanSection) -> ModelShape:
    """Sizes of the model at `path`: the plan's own, else config.json here or in the hub's cache, else those known by name.

    Raises:
        ModelError: none of these has it; names the cure.
    """
    if path in section.shapes:
        return ModelShape(sizes=section.shapes[path], source=f"plan.shapes of {path}")
    file = _config_file(path)
    if file is not None:
        return ModelShape(sizes=_sizes_of(file), source=str(file))
    if path in KNOWN:
        return ModelShape(sizes=KNOWN[path], source=f"sizes known of {path}, because its config.json is not here")
    raise ModelError(
        f"{path}: its config.json is not here and its sizes are not known; fetch it (hf download {path} config.json), or"
        " give its sizes in plan.shapes"
    )


def _config_file(path: str) -> Path | None:
    # Both are slow to import, and a plan of given or known sizes needs neither.
    from vcrd_ray.models.checkpoint_files import is_on_hub, resolve_model

    if not is_on_hub(path):
        return resolve_model(path) / "config.json"
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json")
    return Path(found) if isinstance(found, str) else None


def _sizes_of(file: Path) -> ShapeSection:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    family = content.get("model_type")
    if family not in _BIASED | _NORMED | _PLAIN:
        raise ModelError(
            f"{file}: the plan does not know the layers of model_type {family}; give the nearest sizes in plan.shapes"
        )
    heads = content["num_attention_heads"]
    return ShapeSection(
        hidden_size=content["hidden_size"],
        num_layers=content["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=content.get("num_key_value_heads") or heads,
        head_dim=content.get("head_dim"),
        intermediate_size=content["intermediate_size"],
        vocab_size=content["vocab_size"],
        tied=bool(content.get("tie_word_embeddings", False)),
        qkv_bias=family in _BIASED,
        qk_norm=family in _NORMED,
    )
