"""Turns -> text through a chat template -> token ids, so that no text of data becomes a control token.

A chat template makes one text of control tokens and data, in which a data set's own `<|assistant|>` would open a turn. So data
go through `as_data` before a template sees them, and what the template made goes through `encode`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from jinja2 import TemplateError

from vcrd_ray.config.data import PromptSection
from vcrd_ray.data.json_rows import BadRow
from vcrd_ray.errors import DataError
from vcrd_ray.types import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\U0010fffd"
"""Stands around the number of what is spelled, in private use and as rare as that; one in the data is marked like a token."""
_MARKED = re.compile(f"{_MARK}([0-9]+){_MARK}")


def prompt_ids(
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptSection = PromptSection(),
    *,
    system: str | None = None,
) -> IntArray:
    """The question as the policy is asked it: the one place where prompts are made. No text of data is a control token.

    Args:
        system: the question's own system turn.

    Raises:
        BadRow: the chat template does not take the question's system turn.
        DataError: the tokenizer has no chat template, or one that does not take the system message.
    """
    if prompt.template == "raw":
        return encode(prompt.prefix + as_data(question, tokenizer) + prompt.suffix, tokenizer, add_special_tokens=True)
    return encode(chat_text(question, tokenizer, prompt, system=system), tokenizer, add_special_tokens=False)


def chat_text(
    question: str,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptSection = PromptSection(),
    *,
    system: str | None = None,
) -> str:
    """The question through the tokenizer's chat template, the answer's turn opened; for `encode`.

    Raises:
        BadRow: the chat template does not take the question's system turn.
        DataError: the tokenizer has no chat template, or one that does not take the system message.
    """
    text = prompt.prefix + as_data(question, tokenizer) + prompt.suffix
    own = prompt.system if system is None else as_data(system, tokenizer)

    def with_system(content: str | None) -> str:
        before = [] if content is None else [{"role": "system", "content": content}]
        return render_chat([*before, {"role": "user", "content": text}], tokenizer)

    try:
        rendered = with_system(own)
        # A short system message may stand in the question too: another one must make another prompt.
        left_out = bool(own and own.strip()) and rendered == with_system(f"{own} {own}")
    except TemplateError as error:
        if system is not None:
            raise BadRow("bad_chat", f"the tokenizer's chat template refuses its system turn: {error}") from None
        raise DataError(f"the tokenizer's chat template refuses the prompt: {error}; change section prompt") from None
    if left_out or (own or "").strip() not in rendered:
        if system is not None:
            raise BadRow("bad_chat", "the tokenizer's chat template leaves its system turn out")
        raise DataError("the tokenizer's chat template leaves prompt.system out; put the text in prompt.prefix")
    return rendered


def render_chat(messages: Sequence[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Turns through the chat template, the answer's turn opened; for `encode`.

    Raises:
        TemplateError: the template refuses them.
        DataError: there is none.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            "the policy's tokenizer has no chat template; set prompt.template to raw, use a tokenizer that has one, or add"
            " it to tokenizer_config.json"
        )
    rendered: str = tokenizer.apply_chat_template([*messages], add_generation_prompt=True, tokenize=False)
    return rendered


def template_fingerprint(prompt: PromptSection, tokenizer: PreTrainedTokenizerBase) -> str:
    """Short hash over all that turns a question into policy prompt ids, the vocabulary excepted."""
    content = [prompt.model_dump(), tokenizer.chat_template if prompt.template == "chat" else None]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def as_data(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with special tokens that it spells marked, so that `encode` reads them as text."""
    spelled, pattern = _special(tokenizer, len(tokenizer))
    return pattern.sub(lambda match: f"{_MARK}{spelled.index(match[0])}{_MARK}", text)


def spells_special(text: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a special token's name stands in a text."""
    return as_data(text, tokenizer) != text


def encode(text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> IntArray:
    """Ids of a text whose parts from data went through `as_data`; of any other text as the tokenizer has them.

    Raises:
        BadRow: the tokenizer has no ids for a special token's name but the token's own, or a template has rewritten a mark.
    """
    parts = _MARKED.split(text)
    if any(_MARK in part for part in parts[::2]):
        raise BadRow("unusable", "it spells a special token where the chat template rewrites it; reword it")
    if len(parts) == 1:
        return np.asarray(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"], dtype=np.int32)
    spelled, _ = _special(tokenizer, len(tokenizer))
    before, after = _around(tokenizer) if add_special_tokens else ([], [])
    ids: list[int] = [*before]
    for number, part in enumerate(parts):
        if number % 2 == 0:
            ids += tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
        else:
            ids += _as_text(spelled[int(part)], tokenizer)
    return np.asarray([*ids, *after], dtype=np.int32)


@lru_cache(maxsize=8)
def _special(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], re.Pattern[str]]:
    """The mark and the names of the special tokens, and what finds them; `size` tells a tokenizer that has grown."""
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    names |= set(tokenizer.all_special_tokens)
    # A longer name may begin with a shorter one.
    spelled = [_MARK, *sorted(names - {""}, key=lambda name: (-len(name), name))]
    return spelled, re.compile("|".join(map(re.escape, spelled)))


def _as_text(name: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer(name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if tokenizer.convert_tokens_to_ids(name) in ids and name != _MARK:
        raise BadRow("unusable", f"it spells {name!r}, which this tokenizer knows as a control token only; reword it")
    return ids


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind any text."""
    probe = "a"
    whole: list[int] = tokenizer(probe)["input_ids"]
    inner: list[int] = tokenizer(probe, add_special_tokens=False)["input_ids"]
    at = next(i for i in range(len(whole)) if whole[i : i + len(inner)] == inner)
    return whole[:at], whole[at + len(inner) :]
