"""Final answers and their intervals."""

import pytest

from vcrd_ray.data.accuracy import accuracy
from vcrd_ray.data.final_answers import final_answer, is_correct


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("12+7=19\n#### 19", "19"),
        ("#### 1,234 pens", "1,234"),
        ("it is 3, no, 4.5", "4.5"),
        ("#### -7", "-7"),
        ("5 then\n####", None),
        ("none", None),
        ("", None),
    ],
)
def test_the_answer_after_the_mark_or_the_last_number_counts(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("response", "gold", "right"),
    [
        ("#### 1234", "#### 1,234", True),
        ("#### 4.0", "4", True),
        ("#### 5", "4", False),
        ("", "4", False),
        ("4", None, False),
        ("", "", False),
    ],
)
def test_answers_are_compared_as_numbers_and_nothing_never_passes(response: str, gold: str | None, right: bool) -> None:
    assert is_correct(response, gold) is right


def test_wilson_interval_equals_published_values() -> None:
    # Newcombe (1998), Table I: 81 of 263 and 0 of 20.
    a = accuracy(correct=81, total=263, confidence=0.95)
    assert (round(a.low, 4), round(a.high, 4)) == (0.2553, 0.3662)
    b = accuracy(correct=0, total=20, confidence=0.95)
    assert b.low == 0 and round(b.high, 4) == 0.1611
    with pytest.raises(ValueError, match="no answers"):
        accuracy(correct=0, total=0, confidence=0.95)
