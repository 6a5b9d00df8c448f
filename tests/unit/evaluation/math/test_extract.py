from __future__ import annotations

import pytest

from tests.unit.evaluation.math.benchmark_data import extract_answer
from vcrd_ray.evaluation.math.extract import clean_choice, last_boxed, last_letter


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (r"The final answer is $\frac12$. I hope it is correct. \boxed{3}", r"\frac{1}{2}"),
        (r"First \boxed{1}, then \boxed{\frac{2}{3}}.", r"\frac{2}{3}"),
        (r"$\boxed 7$ is it", "7"),
        (r"\boxed{1+\{2", "1+{2"),
        (r"so it is \boxed", ""),
        ("The answer is 5. No, the answer is 6.", "6"),
        ("My final answer is: 12/", "12"),
        ("所以答案是 42\n\n接下来", "42"),
        ("There are 1,234 apples and -5.5 pears", "-5.5"),
        ("It costs 1,234,567", "1234567"),
        ("costs .75", "0.75"),
        ("I do not know", ""),
        ("The answer is\n  3\n  4", "34"),
    ],
)
def test_a_reply_states_this_answer(reply: str, answer: str) -> None:
    assert extract_answer(reply, "open") == answer


def test_units_stay_where_they_are_kept() -> None:
    assert extract_answer(r"\boxed{4.5 m}", "open_with_units") == "4.5m"


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("The answer is (B), not C", "B"),
        ("A or B or C", "C"),
        ("The answer is A.\n\nNext problem. The answer is D.", "A"),
        ("the choice is e", "E"),
        ("Nothing of it.", "Nothing of it"),
    ],
)
def test_a_reply_chooses_this_letter(reply: str, letter: str) -> None:
    assert clean_choice(reply) == letter
    assert extract_answer(reply, "choice") == letter


def test_the_last_letter_counts_without_a_trigger() -> None:
    assert last_letter("A: the answer is B, not C") == "C"


def test_braces_inside_the_box_are_kept() -> None:
    assert last_boxed(r"\boxed{\sqrt{\frac{1}{2}}} and {more}") == r"\sqrt{\frac{1}{2}}"
