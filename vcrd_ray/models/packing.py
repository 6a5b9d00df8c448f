"""Whether prompts and their responses fit a model, and which of them are run together."""

from __future__ import annotations

from collections.abc import Sequence

from vcrd_ray.config import SamplingSection
from vcrd_ray.errors import DataError
from vcrd_ray.types import Prompt


def check_lengths(prompts: Sequence[Prompt], sampling: SamplingSection, *, max_length: int, setting: str) -> None:
    """Refuse prompts whose longest response would be cut at the model's positions without a word.

    Raises:
        DataError: names the first such prompt; `setting` is what bounds the model.
    """
    for prompt in prompts:
        if len(prompt.ids) + sampling.max_new_tokens > max_length:
            raise DataError(
                f"prompt {prompt.id!r}: {len(prompt.ids)} tokens and max_new_tokens {sampling.max_new_tokens} are more than the"
                f" model's {max_length} ({setting}); lower max_prompt_length or max_new_tokens"
            )


def by_token_budget(lengths: Sequence[int], budget: int | None) -> list[list[int]]:
    """Indices in batches of like lengths whose padded size, rows times the longest, is within the budget.

    What is longer than the budget is a batch of its own. Without a budget all are one batch, in their order.
    """
    if budget is None or len(lengths) * max(lengths, default=0) <= budget:
        return [list(range(len(lengths)))] if lengths else []
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # Longest first: the first of a batch is its width.
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > budget:
            batches.append([])
        batches[-1].append(index)
    return batches
