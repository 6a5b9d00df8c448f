"""A question as the policy is asked it, against the tokenizer's own template."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from vcrd_ray.config.data import PromptSection
from vcrd_ray.data.problems import Problem, make_examples, prompt_ids, template_fingerprint, tokenize_prompts
from vcrd_ray.errors import DataError
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

QUESTION = "Ann has 12 pens, gets 7."
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ ' ' }}{% endif %}"
)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """The tiny tokenizer with a template that knows system messages."""
    changed = copy.copy(load_tokenizer(resolve_model("tiny:student-base")))
    changed.chat_template = TEMPLATE
    return changed


def chat_ids(tokenizer: PreTrainedTokenizerBase, *messages: tuple[str, str]) -> list[int]:
    """The tokenizer's own way from messages to ids."""
    turns = [{"role": role, "content": content} for role, content in messages]
    ids: list[int] = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    return ids


def test_the_default_is_the_chat_template_around_the_bare_question() -> None:
    tokenizer = load_tokenizer(resolve_model("tiny:student-base"))
    assert prompt_ids(QUESTION, tokenizer).tolist() == chat_ids(tokenizer, ("user", QUESTION))


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({}, [("user", QUESTION)]),
        ({"system": "so add"}, [("system", "so add"), ("user", QUESTION)]),
        ({"suffix": " How many?"}, [("user", QUESTION + " How many?")]),
        (
            {"system": "so add", "prefix": "Q ", "suffix": "\nA "},
            [("system", "so add"), ("user", "Q " + QUESTION + "\nA ")],
        ),
    ],
)
def test_system_prefix_and_suffix_stand_where_the_tokenizer_puts_them(
    tokenizer: PreTrainedTokenizerBase, changes: dict[str, str], messages: list[tuple[str, str]]
) -> None:
    assert prompt_ids(QUESTION, tokenizer, PromptSection(**changes)).tolist() == chat_ids(tokenizer, *messages)  # type: ignore[arg-type]


def test_raw_is_the_text_as_the_tokenizer_takes_any_text(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = None
    raw = PromptSection(template="raw", prefix="Q ", suffix=" A ")
    assert prompt_ids(QUESTION, tokenizer, raw).tolist() == tokenizer("Q " + QUESTION + " A ")["input_ids"]
    with pytest.raises(DataError, match=r"no chat template; set prompt\.template to raw"):
        prompt_ids(QUESTION, tokenizer)


def test_rollouts_and_examples_ask_alike_and_judges_see_the_bare_question(tokenizer: PreTrainedTokenizerBase) -> None:
    problems = [Problem(id="a-0", question=QUESTION, solution="12+7=19")]
    options: dict[str, Any] = {"prompt": PromptSection(suffix=" How many?"), "max_length": 1000}
    (prompt,), _ = tokenize_prompts(problems, tokenizer, **options)
    (example,), _ = make_examples(problems, tokenizer, **options)
    assert prompt.question == QUESTION
    assert prompt.ids.tolist() == example.prompt_ids.tolist() == chat_ids(tokenizer, ("user", QUESTION + " How many?"))


def test_a_template_without_system_messages_is_said(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match="refuses the prompt: System role not supported"):
        prompt_ids(QUESTION, tokenizer, PromptSection(system="s"))
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(DataError, match=r"leaves prompt\.system out"):
        prompt_ids(QUESTION, tokenizer, PromptSection(system="so add"))


def test_raw_has_no_system_message() -> None:
    with pytest.raises(ValidationError, match="put the text in prefix"):
        PromptSection(template="raw", system="s")


def test_the_fingerprint_tells_templates_apart(tokenizer: PreTrainedTokenizerBase) -> None:
    sections = [PromptSection(), PromptSection(suffix="s"), PromptSection(system=""), PromptSection(template="raw")]
    prints = [template_fingerprint(section, tokenizer) for section in sections]
    assert len(set(prints)) == 4
    tokenizer.chat_template += " "
    again = [template_fingerprint(section, tokenizer) for section in sections]
    assert [a == b for a, b in zip(prints, again, strict=True)] == [False, False, False, True]
