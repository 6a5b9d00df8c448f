"""Published sizes of models that the shipped recipes name, for plans made where the hub cannot be reached. Knows no files."""

from __future__ import annotations

from vcrd_ray.config.plan import ShapeSection


def _qwen2(hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, *, vocab: int, tied: bool) -> ShapeSection:
    return ShapeSection(
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        intermediate_size=mlp,
        vocab_size=vocab,
        tied=tied,
    )


def _llama(hidden: int, layers: int, heads: int, mlp: int, *, vocab: int) -> ShapeSection:
    sizes = _qwen2(hidden, layers, heads, heads, mlp, vocab=vocab, tied=False)
    return sizes.model_copy(update={"qkv_bias": False})


_HALF = _qwen2(896, 24, 14, 2, 4864, vocab=151936, tied=True)
_ONE_AND_A_HALF = _qwen2(1536, 28, 12, 2, 8960, vocab=151936, tied=True)
_SEVEN = _qwen2(3584, 28, 28, 4, 18944, vocab=152064, tied=False)
_FOURTEEN = _qwen2(5120, 48, 40, 8, 13824, vocab=152064, tied=False)

_QWEN = {
    "Qwen2-{}0.5B": (_HALF, ("",)),
    "Qwen2-{}1.5B": (_ONE_AND_A_HALF, ("", "Math-")),
    "Qwen2-{}7B": (_SEVEN, ("", "Math-")),
    "Qwen2.5-{}0.5B": (_HALF, ("", "Coder-")),
    "Qwen2.5-{}1.5B": (_ONE_AND_A_HALF, ("", "Math-", "Coder-")),
    "Qwen2.5-{}7B": (_SEVEN, ("", "Math-", "Coder-")),
    "Qwen2.5-{}14B": (_FOURTEEN, ("", "Coder-")),
}

KNOWN: dict[str, ShapeSection] = {
    f"Qwen/{pattern.format(kind)}{suffix}": sizes
    for pattern, (sizes, kinds) in _QWEN.items()
    for kind in kinds
    for suffix in ("", "-Instruct")
} | {
    "Qwen/Qwen2.5-Math-PRM-7B": _SEVEN,
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B": _ONE_AND_A_HALF,
    "Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B": _SEVEN,
    "deepseek-ai/deepseek-coder-1.3b-base": _llama(2048, 24, 16, 5504, vocab=32256),
    "deepseek-ai/deepseek-coder-1.3b-instruct": _llama(2048, 24, 16, 5504, vocab=32256),
    "deepseek-ai/deepseek-coder-6.7b-base": _llama(4096, 32, 32, 11008, vocab=32256),
    "deepseek-ai/deepseek-coder-6.7b-instruct": _llama(4096, 32, 32, 11008, vocab=32256),
}
