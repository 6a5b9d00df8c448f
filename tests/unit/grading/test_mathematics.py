"""Faults of math-verify that are mended, over several members of each kind; the rest stays as the library has it."""

from __future__ import annotations

import threading

import pytest

from vcrd_ray.grading.mathematics import is_readable, is_right

pytest.importorskip("math_verify")


def boxed(answer: str) -> str:
    return rf"So it is $\boxed{{{answer}}}$."


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
        (r"\frac{1}{2004!}", r"\frac{1}{2004!}", True),
        ("1/2^{99}", "1/2^{98}", False),
        ("1/2^{99}", "2^{-99}", True),
        ("0.0000001", "0.0000002", False),
        ("0.0000001", "10^{-7}", True),
        ("0", "1/2^{99}", False),
        (r"\{1/2^{99}, 1\}", r"\{1/2^{98}, 1\}", False),
        (r"(1/2^{99}, 1)", r"(1/2^{98}, 1)", False),
        (r"\frac{x}{2^{99}}", r"\frac{x}{2^{98}}", False),
        (r"\frac{x}{2^{99}}", r"x \cdot 2^{-99}", True),
        (r"\sqrt{5+2\sqrt{6}}", r"\sqrt{2}+\sqrt{3}", True),
        ("0.5", r"\frac{1}{2}", True),
        ("0.333333", r"\frac{1}{3}", True),
        ("0.333", r"\frac{1}{3}", False),
        (r"\pi", "3.14159", False),
    ],
)
def test_small_numbers_are_compared_by_their_own_size(gold: str, answer: str, right: bool) -> None:
    assert is_right(gold, boxed(answer))[0] is right


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"50\%", "0.5", True),
        (r"50\%", "50", True),
        ("50", r"50\%", True),
        ("0.5", r"50\%", True),
        (r"12.5\%", "0.125", True),
        (r"50\%", "5", False),
        (r"50\%", r"51\%", False),
    ],
)
def test_a_percentage_in_a_box_is_its_value_or_its_number(gold: str, answer: str, right: bool) -> None:
    assert is_right(gold, boxed(answer))[0] is right


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"\text{Friday}", "Friday", True),
        ("Friday", r"\text{friday}", True),
        ("Friday", "Dirfay", False),
        ("Ann beats Bob", "Bob beats Ann", False),
        (r"\text{no solution}", "no solution", True),
        ("12:30", "24:60", False),
        ("3:4", r"\frac{3}{4}", False),
    ],
)
def test_words_times_and_ratios_are_compared_as_text(gold: str, answer: str, right: bool) -> None:
    assert is_right(gold, boxed(answer))[0] is right


@pytest.mark.parametrize(("gold", "readable"), [("3/4", True), (r"\frac{1}{", False), ("?", False), ("x=5", True)])
def test_a_gold_without_expression_is_not_readable(gold: str, readable: bool) -> None:
    assert is_readable(gold) is readable


def test_it_needs_no_main_thread() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(is_right("3/4", boxed("0.75"))[0]))
    thread.start()
    thread.join()
    assert found == [True]
