"""Golds as data sets have them: which answer they state, how it is compared, and which no response could meet."""

from __future__ import annotations

import pytest

from vcrd_ray.grading.golds import Gold, read_gold


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", "18"),
        ("-7", "-7"),
        ("18.50", "18.50"),
        ("1,234", "1,234"),
        ("$18", "18"),
        (r"\$1,234.50", "1,234.50"),
        ("$18$", "18"),
        ("50%", "50"),
        (r"50\%", "50"),
        ("18 dollars", "18"),
        ("007", "007"),
        ("12+7=19\n#### 19", "19"),
        ("#### 1,234 pens", "1,234"),
        (r"so it is \boxed{18}. There are 3 more.", "18"),
        (r"#### \boxed{5}", "5"),
        ("The answer is 18.", "18"),
        ("Answer: 42", "42"),
        ("She gets 7 more.\nSo she has 19 pens.", "19"),
        ("Therefore, 12 * 7 = 84", "84"),
    ],
)
def test_integers_and_decimals_are_numbers_with_or_without_unit(text: str, number: str) -> None:
    assert read_gold(text) == Gold(kind="number", text=number)


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("3/4", "3/4"),
        (r"$\frac{3}{4}$", r"\frac{3}{4}"),
        ("1 1/2", r"1\frac{1}{2}"),
        ("5 1/2 hours", r"5\frac{1}{2}"),
        ("1e22", r"1 \times 10^{22}"),
        ("1 000", "1000"),
        ("−5", "-5"),
        ("1,2,3", "1,2,3"),
        ("(1,2)", "(1,2)"),
        ("2^10", "2^10"),
        ("pi/2", r"\pi/2"),
        ("2x+1", "2x+1"),
        ("x=5", "x=5"),
        (r"\sqrt{2}", r"\sqrt{2}"),
        ("The answer is: 3/4", "3/4"),
        (r"thus \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
    ],
)
def test_what_is_more_than_a_number_is_an_expression(text: str, expression: str) -> None:
    assert read_gold(text) == Gold(kind="expression", text=expression)


@pytest.mark.parametrize("text", ["Friday", r"\text{no solution}", "True", "yes", "B", "12:30", "3:4", "5 pm"])
def test_words_choices_times_and_ratios_are_compared_as_text(text: str) -> None:
    assert read_gold(text) == Gold(kind="words", text=text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no gold answer"),
        ("", "empty"),
        (" \n", "empty"),
        ("####", "no final answer"),
        ("5 then\n####", "no final answer"),
        (r"so \boxed{}", "no final answer"),
        (r"\text{ }", "no final answer"),
        ("$$", "no final answer"),
        ("She walks home.\nThen she sleeps.", "no final answer"),
        ("So the probability is 3/4.", "no final answer"),
        ("So n = 12, m = 3.", "no final answer"),
        ("who knows", "free text"),
        ("Ann beats Bob", "free text"),
        ("5 million", "free text"),
    ],
)
def test_what_no_response_could_meet_is_refused_with_its_reason(text: str | None, reason: str) -> None:
    assert read_gold(text) == reason
