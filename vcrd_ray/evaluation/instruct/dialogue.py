"""Turns and answers so far -> what a model is asked next, and its words -> the answer that is shown. Knows no engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from vcrd_ray.config.data import PromptSection
from vcrd_ray.data.chat import as_data, encode, prompt_ids, render_chat
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
    asked = [prompt.prefix + as_data(turn, tokenizer) + prompt.suffix for turn in turns[: len(answers) + 1]]
    messages = [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
    for question, answer in zip(asked, answers, strict=False):
        said = {"role": "assistant", "content": as_data(answer, tokenizer)}
        messages += [{"role": "user", "content": question}, said]
    messages.append({"role": "user", "content": asked[-1]})
    try:
        text = render_chat(messages, tokenizer)
    except TemplateError as error:
        raise DataError(
            f"the tokenizer's chat template refuses a second turn: {error}; leave sets of several turns out"
        ) from None
    return encode(text, tokenizer, add_special_tokens=False)


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
