from __future__ import annotations

from pathlib import Path

import pytest

from vcrd_ray.evaluation.math import symbolic
from vcrd_ray.evaluation.math.equality import math_equal, quick_verdict
from vcrd_ray.evaluation.math.symbolic import symbolic_equal

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("prediction", "gold", "verdict"),
    [
        ("Yes", "yes", True),
        ("", "", True),
        ("", "5", False),
        ("(B)", "B", True),
        ("1,234", "1234", True),
        ("12", "1,2", True),
        ("5", "6", False),
        ("1", "100", True),
        ("100", "1", True),
        ("0.5", "50", True),
        ("50%", "0.5", True),
        (r"50\%", "50", True),
        ("120006", "120000", True),
        ("120020", "120000", False),
        ("x", "y", None),
    ],
)
def test_text_letters_and_numbers_are_settled_at_once(prediction: str, gold: str, verdict: bool | None) -> None:
    assert quick_verdict(prediction, gold) is verdict


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\frac{100}{3}", "33.333"),
        ("0.0833333333333333", r"\frac{1}{12}"),
        (r"\frac{x}{7}+\frac{2}{7}", r"\frac{x+2}{7}"),
        (r"\sec^2(y)", r"\tan^2(y)+1"),
        ("(1,4.5)", r"(1,\frac{9}{2})"),
        ("(0,9)", "[0,9)"),
        ("[0,9)", "(0,9)"),
        ("{3}", "3"),
        ("y=2x+3", "2x-y+3=0"),
        ("-34x-45y+20z-100=0", "34x+45y-20z+100=0"),
        ("k=5", "5"),
        ("5", "k=5"),
        (r"\sqrt{67}", r"\sqrt{67},-\sqrt{85}"),
        (r"\begin{pmatrix}0.5\\2\end{pmatrix}", r"\begin{pmatrix}\frac{1}{2}\\2\end{pmatrix}"),
        ("[1,2]", "{1,2}"),
        (r"\\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_these_count_as_equal(prediction: str, gold: str) -> None:
    assert math_equal(prediction, gold)


@pytest.mark.parametrize(
    ("prediction", "gold"),
    [
        (r"\frac{1}{3}", "0.5"),
        ("x+1", "x+2n+1"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "(1,2,3)"),
        ("(+5)(b+2)", "(a+5)(b+2)"),
        (r"\frac{1+\sqrt{5}}{2}", "2"),
        ("x=1", "y=2"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"),
        (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("23{,}000", "23000"),
        (r"918\frac{1}{2}", "918.5"),
        ("-12;-11;-10", "{-12,-11,-10}"),
        (r"(-1,1)\cup(2,3)", r"(2,3)\cup(-1,1)"),
    ],
)
def test_these_count_as_different(prediction: str, gold: str) -> None:
    assert not math_equal(prediction, gold)


def test_a_double_escape_does_not_end_a_row() -> None:
    cells = r"\begin{pmatrix}\frac{1}{2}\\\frac{1}{3}\end{pmatrix}"
    assert symbolic_equal(cells, r"\begin{pmatrix}0.5\\0.333333\end{pmatrix}")


def test_an_equal_answer_is_equal_every_time() -> None:
    assert len({symbolic_equal(r"\sin^2(x)+\cos^2(x)", "1") for _ in range(5)}) == 1


@pytest.mark.parametrize(
    "text",
    [
        "open({path!r},'w')",
        "__import__('os').mkdir({path!r})",
        "().__class__.__base__.__subclasses__()",
        "x.func",
        "eval(x)",
        "exec(x)",
        "[x for x in (1,2)]",
        "(lambda: x)()",
        "f'{{x}}'",
    ],
)
def test_an_answer_is_never_run_as_a_program(text: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    answer = text.format(path=str(trace))
    for gold in ("1", "x+1", r"\begin{pmatrix}1\\2\end{pmatrix}", "y=1", "[1,2;"):
        symbolic_equal(answer, gold)
        symbolic_equal(gold, answer)
    assert not trace.exists()


@pytest.mark.parametrize("text", ["x.func", "'a'", "x__y", "lambda: 1", "(y for y in x)"])
def test_python_that_is_no_mathematics_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not mathematics"):
        symbolic._parse_python(text)


def test_builtins_mean_nothing_in_an_answer() -> None:
    assert str(symbolic._parse_python("open(x)")) == "open(x)"
    assert str(symbolic._parse_python("getattr(x,y)")) == "getattr(x, y)"


def test_python_notation_is_mathematics() -> None:
    assert symbolic._parse_python("2**3+sqrt(4)+max(1,2)") == 12
