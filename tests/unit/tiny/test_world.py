"""Claims about the tiny world's problems and solutions."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.world import make_problem, make_problems, parse_question, sample_solution

indices = st.integers(min_value=0, max_value=10**6)
worlds = st.builds(
    WorldConfig,
    num_ways=st.integers(1, 4),
    min_steps=st.integers(1, 2),
    max_steps=st.integers(2, 6),
    max_number=st.integers(20, 999),
    max_change=st.integers(1, 19),
    share_two_people=st.floats(0, 1),
)


@settings(max_examples=100, deadline=None)
@given(config=worlds, seed=st.integers(0, 99), index=indices)
def test_parsing_a_question_gives_back_its_problem(config: WorldConfig, seed: int, index: int) -> None:
    problem = make_problem(config, seed=seed, index=index)
    parsed = parse_question(problem.question)
    assert parsed == problem
    assert (parsed.id, parsed.answer) == (problem.id, problem.answer)


@settings(max_examples=100, deadline=None)
@given(config=worlds, index=indices)
def test_a_solution_is_true_arithmetic_that_ends_with_the_answer(config: WorldConfig, index: int) -> None:
    problem = make_problem(config, seed=0, index=index)
    solution = sample_solution(problem, random.Random(index), num_ways=config.num_ways)
    *steps, last = solution.split("\n")
    assert last == f"#### {problem.answer}"
    assert config.min_steps <= len(steps) <= config.max_steps
    for line in steps:
        equation = line.removeprefix("so ").removeprefix("then ").replace(" is ", "=")
        said, result = equation.split("=")
        numbers = [int(n) for n in said.replace("-", "+").split("+")] + [int(result)]
        assert numbers[2] == numbers[0] + (1 if "+" in said else -1) * numbers[1]
        assert min(numbers) > 0 and max(numbers) <= config.max_number


def test_a_problem_is_a_function_of_seed_and_index() -> None:
    config = WorldConfig()
    assert make_problem(config, seed=5, index=9) == make_problem(config, seed=5, index=9)
    assert make_problem(config, seed=5, index=9) != make_problem(config, seed=5, index=10)


def test_seeds_that_differ_modulo_8_share_no_question() -> None:
    # A world so small that chance alone would repeat questions.
    config = WorldConfig(min_steps=1, max_steps=1, max_number=10, max_change=2)
    ids = [{make_problem(config, seed=s, index=i).id for i in range(300)} for s in range(8)]
    assert sum(map(len, ids)) == len(set().union(*ids))


def test_make_problems_repeats_nothing() -> None:
    problems = make_problems(WorldConfig(), seed=0, count=2000)
    assert len({p.question for p in problems}) == 2000


def test_a_world_with_too_few_problems_is_refused() -> None:
    config = WorldConfig(min_steps=1, max_steps=1, max_number=10, max_change=1)
    with pytest.raises(ValueError, match="too few problems"):
        make_problems(config, seed=0, count=400)


def test_with_one_way_every_step_is_an_equation() -> None:
    problem = make_problem(WorldConfig(), seed=0, index=0)
    for seed in range(20):
        *steps, _ = sample_solution(problem, random.Random(seed), num_ways=1).split("\n")
        assert all("=" in line and not line.startswith(("so", "then")) for line in steps)


def test_the_steps_of_two_people_come_in_more_than_one_order() -> None:
    problem = parse_question("Ann has 12 pens, gets 7. Bob has 20 pens, loses 5. How many in all?")
    firsts = {sample_solution(problem, random.Random(seed), num_ways=1).split("\n")[0] for seed in range(40)}
    assert firsts == {"12+7=19", "7+12=19", "20-5=15"}


@pytest.mark.parametrize(
    "text",
    [
        "What is 2+2?",
        "Ann has 12 pens, gets 7. How many in all?",
        "Ann has 12 pens, eats 7. How many now?",
        "Ann has 12 pens, gets 7. Bob has 20 hats, loses 5. How many in all?",
        "Ann has 12 pens, gets 07. How many now?",
    ],
)
def test_other_questions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a question of the tiny world"):
        parse_question(text)


@pytest.mark.parametrize(
    "fields",
    [{"min_steps": 3, "max_steps": 2}, {"max_number": 10, "max_change": 10}, {"num_way": 2}],
)
def test_impossible_worlds_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        WorldConfig.model_validate(fields)
