"""Token ids of a response -> its text cut in steps at line breaks, and the step of each token. Knows tokenizers only."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import ModelError
from vcrd_ray.types import IntArray


def step_of_tokens(ids: IntArray, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, ...], IntArray]:
    """Cut a response in steps at line breaks: their texts without surrounding space, and each token's step.

    A token belongs to the step of its first character: the newline that ends a step is part of it, and so is a token that
    goes on behind it. Empty lines, and an end-of-sequence token behind the last line, belong to the step before them (at the
    beginning, to the first one). Special tokens have no text.

    Returns:
        Steps [K], and an index into them for each token [T]; -1 throughout where no line has text.
    """
    text = str(tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    lines = [line.strip() for line in text.split("\n")]
    # A newline is a byte of its own in UTF-8, so it shows even where tokens decoded alone are no whole characters.
    unique, inverse = np.unique(ids, return_inverse=True)
    pieces = tokenizer.batch_decode([[int(i)] for i in unique], skip_special_tokens=True)
    newlines = np.asarray([piece.count("\n") for piece in pieces], dtype=np.int64)[inverse]
    if newlines.sum() != len(lines) - 1:
        raise ModelError(
            f"policy tokenizer: a response decodes to {len(lines) - 1} line breaks, its tokens one by one to"
            f" {int(newlines.sum())}; judges of whole steps cannot tell which token belongs to which step"
        )
    line = np.cumsum(newlines) - newlines
    step = np.cumsum([bool(text) for text in lines]) - 1
    steps = tuple(filter(None, lines))
    return steps, np.maximum(step, 0 if steps else -1)[line].astype(np.int32)
