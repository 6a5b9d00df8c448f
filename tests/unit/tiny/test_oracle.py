"""Claims about the oracle: local validity of each token."""

import random
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.oracle import branch_validity, token_validity
from vcrd_ray.tiny.tokenizer import build_tokenizer
from vcrd_ray.tiny.world import Problem, make_problem, parse_question, sample_solution

CHAIN = parse_question("Ann has 12 pens, gets 7, loses 5. How many now?")
TWO_PEOPLE = parse_question("Ann has 12 pens, gets 7. Bob has 20 pens, loses 5. How many in all?")

indices = st.integers(min_value=0, max_value=10**6)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def ids_of(text: str) -> list[int]:
    return [*tokenizer().encode(text, add_special_tokens=False), tokenizer().eos_token_id]


def invalid_tokens(problem: Problem, text: str) -> list[tuple[int, str]]:
    """Position and text of each token of `text` + EOS that is not valid."""
    ids = ids_of(text)
    valid = token_validity(problem, ids, tokenizer())
    assert len(valid) == len(ids)
    return [(i, tokenizer().decode([ids[i]])) for i, is_valid in enumerate(valid) if not is_valid]


def drawn(index: int) -> tuple[Problem, str]:
    problem = make_problem(WorldConfig(), seed=3, index=index)
    return problem, sample_solution(problem, random.Random(index))


@settings(max_examples=150, deadline=None)
@given(index=indices)
def test_every_token_of_a_sampled_solution_is_valid(index: int) -> None:
    problem, solution = drawn(index)
    assert invalid_tokens(problem, solution) == []


@settings(max_examples=150, deadline=None)
@given(index=indices, data=st.data())
def test_a_corrupted_digit_of_a_result_is_invalid_at_that_digit(index: int, data: st.DataObject) -> None:
    problem, solution = drawn(index)
    ids = ids_of(solution)
    breaks = [i for i, token in enumerate(ids) if tokenizer().decode([token]) == "\n"]
    position = data.draw(st.sampled_from(breaks)) - 1
    right = tokenizer().decode([ids[position]])
    wrong = data.draw(st.sampled_from([d for d in "0123456789" if d != right]))
    (wrong_id,) = tokenizer().encode(wrong, add_special_tokens=False)
    corrupted = [*ids[:position], wrong_id, *ids[position + 1 :]]
    valid = token_validity(problem, corrupted, tokenizer())
    assert all(valid[:position]) and not valid[position]
    assert not branch_validity(problem, ids, position, wrong_id, tokenizer())


@settings(max_examples=60, deadline=None)
@given(index=indices, position=st.integers(0, 200), proposal=st.integers(0, 340))
def test_a_branch_is_as_valid_as_the_response_that_has_it(index: int, position: int, proposal: int) -> None:
    problem, solution = drawn(index)
    ids = ids_of(solution)
    position %= len(ids)
    swapped = [*ids[:position], proposal]
    expected = token_validity(problem, swapped, tokenizer())[position]
    assert branch_validity(problem, ids, position, proposal, tokenizer()) is expected


@settings(max_examples=60, deadline=None)
@given(index=indices, junk=st.lists(st.integers(0, 340), max_size=30), cut=st.integers(0, 40))
def test_any_tokens_at_all_get_one_verdict_each(index: int, junk: list[int], cut: int) -> None:
    problem, solution = drawn(index)
    ids = ids_of(solution)[:cut] + junk
    assert len(token_validity(problem, ids, tokenizer())) == len(ids)


@pytest.mark.parametrize(
    "solution",
    [
        "12+7=19\n20-5=15\n19+15=34\n#### 34",
        "so 20-5=15\nthen 7+12 is 19\n15+19 is 34\n#### 34",
        "7+12 is 19\n20-5=15\n15+19=34\n#### 34",
    ],
)
def test_phrasing_operands_and_independent_steps_are_free(solution: str) -> None:
    assert invalid_tokens(TWO_PEOPLE, solution) == []


@pytest.mark.parametrize(
    ("solution", "invalid"),
    [
        ("12+7=18\n18-5=13\n#### 13", ["8"]),  # later lines follow the stated 18
        ("12+7=18\n19-5=14\n#### 14", ["8", "9"]),  # the stated 18 was not followed; 19-5 is 14
        ("12+8=20\n20-5=15\n#### 15", ["8"]),  # a wrong operand; 12+8 is 20
        ("12-7=5\n5-5=0\n#### 0", ["-"]),  # a wrong sign; 12-7 is 5
        ("12+7=1\n1-5=-4\n#### -4", ["\n"]),  # half a number said
        ("12+7=19\n5-19=-14\n#### -14", ["5", "1", "9"]),  # swapped, but 5-19 is -14
        ("12+7=19\n19-5=14\n#### 15", ["5"]),  # a wrong answer, and then the end
        ("12+7=19\n#### 14", ["####"]),  # a skipped step, but the right answer
        ("#### 14", ["####"]),
        ("12+7=19\n19-5=14", ["<eos>"]),  # no answer line
        ("12+7=19\n19-5=14\n#### 1", ["<eos>"]),
    ],
)
def test_only_the_token_that_goes_wrong_is_invalid(solution: str, invalid: list[str]) -> None:
    assert [text for _, text in invalid_tokens(CHAIN, solution)] == invalid


@pytest.mark.parametrize(
    "solution",
    ["12+7=19\npens\n#### 14", "12+7=19=19\n19-5=14\n#### 14", "12+7=19\n19-5=14\n1-1=0"],
)
def test_nothing_is_valid_after_text_that_is_no_step(solution: str) -> None:
    positions = [i for i, _ in invalid_tokens(CHAIN, solution)]
    assert positions == list(range(positions[0], len(ids_of(solution))))


def test_a_wrong_line_is_taken_for_the_step_it_is_most_like() -> None:
    solution = "20-6=14\n12+7=19\n14+19=33\n#### 33"
    assert [text for _, text in invalid_tokens(TWO_PEOPLE, solution)] == ["6"]


def test_nothing_is_valid_after_the_end() -> None:
    ids = [*ids_of("12+7=19\n19-5=14\n#### 14"), tokenizer().pad_token_id, tokenizer().eos_token_id]
    assert token_validity(CHAIN, ids, tokenizer())[-3:] == [True, False, False]


def test_a_branch_outside_the_response_is_refused() -> None:
    with pytest.raises(ValueError, match="position 3"):
        branch_validity(CHAIN, [5, 6], 3, 7, tokenizer())
