"""Token ids of a response -> its steps. Knows tokenizers only.

A step is a run of whole tokens: text up to a line break or the end of a sentence, blank tokens behind it included.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from vcrd_ray.models.checkpoint_files import special_ids
from vcrd_ray.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*$")
"""May end a sentence: does so where a space follows, as in no decimal number."""


class StepSplitter:
    """Cuts responses of one tokenizer into steps, at line breaks or at ends of sentences too."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, kind: Literal["lines", "sentences"]) -> None:
        self._tokenizer = tokenizer
        self._texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        self._special = special_ids(tokenizer)
        self._breaks = np.array(["\n" in text for text in self._texts])
        self._blank = np.array([not text.strip() for text in self._texts])
        self._sentences = kind == "sentences"

    def split(self, response: IntArray) -> tuple[slice, ...]:
        """The steps as ranges of tokens, one behind the other from token 0; none where there is no text.

        Special tokens at the end belong to no step: they are no text, and a response that was cut off has none.
        """
        stop = len(response)
        while stop and int(response[stop - 1]) in self._special:
            stop -= 1
        starts: list[int] = []
        ended = True
        for i in range(stop):
            if ended and not self._blank[int(response[i])]:
                # Blanks in front of all text belong to the first step, all others to the step before them.
                starts.append(i if starts else 0)
                ended = False
            ended = ended or self._ends_step(response, i, stop)
        return tuple(slice(a, b) for a, b in pairwise([*starts, stop]))

    def _ends_step(self, response: IntArray, i: int, stop: int) -> bool:
        token = int(response[i])
        if self._breaks[token]:
            return True
        text = self._texts[token]
        if not self._sentences or i + 1 >= stop:
            return False
        if not _SENTENCE_END.search(text.rstrip()):
            return False
        # Decoded together, because some tokenizers drop the space in front of a lone token.
        both = self._tokenizer.decode([token, int(response[i + 1])])
        return bool(both[len(text.rstrip()) :][:1].isspace())
