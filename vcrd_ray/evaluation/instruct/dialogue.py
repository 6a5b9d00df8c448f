"""Turns and answers so far -> what a model is asked next, and its words -> the answer that is shown. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import TemplateError

from vcrd_ray.config.data import PromptSection
from vcrd_ray.data.problems import prompt_ids
from vcrd_ray.errors import DataError
from vcrd_ray.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_END_MARKS = frozenset({"<|im_end|>", "<|endoftext|>", "<|eot_id|>", "</s>"})
"""Where a turn ends, beside the tokenizer's own end-of-sequence token: base models know some of these and go on behind them."""


def turn_ids(
    turns: Sequence[str], answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, prompt: PromptSection
) -> IntArray:
    """The turn that follows the answers, behind all that was said before, as section `prompt` has it.

    Raises:
        DataError: there is no chat template, or it does not take the dialogue.
    """
    if not answers:
        return prompt_ids(turns[0], tokenizer, prompt)
    assert prompt.template == "chat", "raw text has no second turn"
    asked = [prompt.prefix + turn + prompt.suffix for turn in turns[: len(answers) + 1]]
    messages = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    for question, answer in zip(asked, answers, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": asked[-1]})
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise DataError(
            f"the tokenizer's chat template refuses a second turn: {error}; leave sets of several turns out"
        ) from None
    return np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def shown_answer(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A response up to the first mark that ends a turn, without special tokens and the white space around it.

    Marks that are no special tokens of this tokenizer are text, as `</s>` is in HTML.
    """
    marks = tokenizer.all_special_tokens
    for mark in (_END_MARKS & set(marks)) | {tokenizer.eos_token}:
        text = text.partition(mark)[0]
    for mark in marks:
        text = text.replace(mark, "")
    return text.strip()
