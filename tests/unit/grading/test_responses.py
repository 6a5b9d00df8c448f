"""Responses graded by the one grader that their golds ask for."""

from __future__ import annotations

import sys

import pytest

from vcrd_ray.config.base import THINKING
from vcrd_ray.data.final_answers import is_correct
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.grading.figures import grading_figures, summary
from vcrd_ray.grading.responses import Checked, Response, ResponseGrader

NUMBERS = ["18", "#### 1,234", "$2.50", "50%", "-7"]
MIXED = [
    "18",
    "1/4",
    "3/4",
    r"\frac{1}{2004!}",
    "1/2^{99}",
    r"\sqrt{2}",
    "2^10",
    "(1,2)",
    "1 1/2",
    "Friday",
    "B",
    "1e22",
    "50%",
    "10^{10^{10}}+x",
]


def grader(golds: list[str | None]) -> ResponseGrader:
    return ResponseGrader(golds, thinking=THINKING, source="here", cure="set answer_key")


def grade(asked: ResponseGrader, *pairs: tuple[str | None, str]) -> list[Checked]:
    return asked.grade([Response(gold=gold, text=text) for gold, text in pairs])


@pytest.mark.parametrize("gold", NUMBERS)
@pytest.mark.parametrize(
    "text",
    [
        "#### 18",
        "#### 1234",
        "it costs $2.50",
        "The answer is 50%.",
        "so -7",
        "3 then 18",
        "none",
        "",
        r"\boxed{18}",
        "18/7",
    ],
)
def test_numbers_are_graded_as_ever(gold: str, text: str) -> None:
    asked = grader([*NUMBERS])
    assert asked.name == "last_number"
    (checked,) = grade(asked, (gold, text))
    assert checked.right is is_correct(text, gold)


@pytest.mark.slow
def test_other_golds_are_graded_as_mathematics() -> None:
    asked = grader([*MIXED])
    assert asked.name == "math_verify" and asked.refused == {}
    wanted = {
        ("1/4", "#### 3/4"): False,
        ("3/4", "#### 1/4"): False,
        ("1/4", "#### 0.25"): True,
        ("1/4", "The answer is 1/4."): True,
        ("1/4", r"so $\frac{1}{4}$."): True,
        ("1/4", r"\boxed{\frac14}"): True,
        (r"\frac{1}{2004!}", r"\boxed{\frac{1}{2006!}}"): False,
        (r"\frac{1}{2004!}", r"\boxed{\frac{1}{2004!}}"): True,
        ("1/2^{99}", "#### 1/2^{98}"): False,
        ("1/2^{99}", "#### 2^{-99}"): True,
        ("18", "#### 18 dollars"): True,
        ("18", "so she has 18 apples."): True,
        ("18", r"\boxed{\frac{1}{18}}"): False,
        (r"\sqrt{2}", "#### sqrt(2)"): True,
        (r"\sqrt{2}", "#### 2"): False,
        ("2^10", "#### 1024"): True,
        ("2^10", "#### 2"): False,
        ("(1,2)", r"\boxed{(2,1)}"): False,
        ("(1,2)", r"\boxed{(1, 2)}"): True,
        ("1 1/2", "The answer is 1 1/2."): True,
        ("1 1/2", "#### 1"): False,
        ("Friday", "The answer is Friday."): True,
        ("Friday", r"\boxed{\text{dirfay}}"): False,
        ("B", r"so (C), no: the answer is (B)."): True,
        ("B", r"\boxed{\text{(C)}}"): False,
        ("1e22", "#### 10^{22}"): True,
        ("50%", "#### 50"): True,
        ("18", "nothing"): False,
        ("18", "####"): False,
    }
    found = dict(zip(wanted, [c.right for c in grade(asked, *wanted)], strict=True))
    assert found == wanted


@pytest.mark.slow
def test_what_takes_too_long_is_wrong_and_counted() -> None:
    asked = grader([*MIXED])
    checked = grade(asked, ("10^{10^{10}}+x", r"\boxed{9^{9^{9^{9}}}+x}"), ("1/4", "#### 1/4"))
    assert [c.verdict for c in checked] == ["timeout", "correct"]
    assert grading_figures(checked, asked).timeouts == 1


@pytest.mark.slow
def test_golds_that_no_response_could_meet_are_refused_and_counted() -> None:
    asked = grader(["1/4", "", None, "who knows", "who knows", r"\frac{1}{", "####"])
    assert asked.refused == {
        "empty": 1,
        "free text": 2,
        "no final answer": 1,
        "no gold answer": 1,
        "not readable": 1,
    }
    (right, *others) = grade(
        asked, ("1/4", "1/4"), (r"\frac{1}{", r"\frac{1}{"), (None, "3"), ("who knows", "who knows")
    )
    assert right.right and [c.right for c in others] == [None] * 3
    with pytest.raises(
        DataError, match=r"no prompt has a gold answer that a response could meet.*1 empty.*set answer_key"
    ):
        grader(["", None])


@pytest.mark.parametrize("library", ["math_verify", "pebble"])
def test_only_golds_that_are_no_numbers_need_the_library(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    assert grader([*NUMBERS]).name == "last_number"
    with pytest.raises(
        ConfigError, match=r"install vcrd-ray\[math\] or give golds of here that are plain.*'1/4' is not"
    ):
        grader(["1/4"])


def test_thinking_is_taken_off_and_both_readings_are_counted() -> None:
    asked = grader([*NUMBERS])
    checked = grade(
        asked,
        ("18", "<think>7</think> 18"),
        ("18", "18, no: <think>18"),
        ("18", "<think>it is 3</think> 18\n<think>or 4</think>"),
        ("18", "18"),
    )
    assert [c.right for c in checked] == [True, False, True, True]
    assert [c.right_whole for c in checked] == [True, True, False, True]
    figures = grading_figures(checked, asked)
    assert (figures.thought, figures.unfinished, figures.right, figures.right_whole) == (2, 1, 3, 3)


@pytest.mark.parametrize(("cut_off", "warned"), [(0, False), (1, False), (2, True), (10, True)])
def test_more_than_a_tenth_cut_off_is_warned_of(cut_off: int, warned: bool) -> None:
    asked = grader(["18"])
    responses = [Response(gold="18", text="18", cut_off=i < cut_off) for i in range(10)]
    figures = grading_figures(asked.grade(responses), asked)
    lines = summary("student", figures)
    assert lines[0].startswith(f"student: {10 * cut_off}.0% of 10 responses cut off")
    assert "100.0% of 10 right by last_number" in lines[0]
    assert any(line.startswith("warning: student") and "max_new_tokens" in line for line in lines) is warned
