"""Claims about the tiny world's tokenizer."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.tokenizer import build_tokenizer
from vcrd_ray.tiny.world import make_problem, sample_solution

QUESTION = "Ann has 12 pens, gets 7. How many now?"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return [tokenizer.decode([token_id]) for token_id in ids]


@given(text=st.text(max_size=40).filter(lambda t: "<" not in t))
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_digits_and_line_breaks_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert pieces(tokenizer, "so 12+7=19\n\n#### 19") == [
        *["so", " ", "1", "2", "+", "7", "=", "1", "9", "\n", "\n", "####", " ", "1", "9"]
    ]


def test_two_builds_are_equal(tokenizer: PreTrainedTokenizerFast) -> None:
    again = build_tokenizer()
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_saving_and_loading_changes_nothing(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{QUESTION}\n12+7 is 19\n#### 19 é"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.padding_side == "left"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name) is not None


def test_the_chat_template_adds_two_tokens_to_a_question(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    user = {"role": "user", "content": QUESTION}
    prompt = tokenizer.apply_chat_template([user], add_generation_prompt=True, tokenize=False)
    assert prompt == f"<|user|>{QUESTION}<|assistant|>"
    answered = [user, {"role": "assistant", "content": "#### 19"}]
    whole = tokenizer.apply_chat_template(answered, tokenize=False)
    assert whole == f"{prompt}#### 19<eos>"


def test_prompts_and_responses_are_short(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) <= 512
    for index in range(500):
        problem = make_problem(WorldConfig(), seed=0, index=index)
        solution = sample_solution(problem, random.Random(index))
        assert len(tokenizer.encode(problem.question)) + 2 <= 45
        assert len(tokenizer.encode(solution)) + 1 <= 50
