"""Whether prompts and their responses fit a model."""

from __future__ import annotations

from collections.abc import Sequence

from vcrd_ray.config.data import SamplingSection
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
