"""Two answers -> whether they are one expression. Knows nothing of normal forms; imports SymPy where it is first needed.

Texts that models wrote are parsed here, in time and memory without bound: call it in a process that may be killed. Nothing
of them is ever evaluated as Python beyond SymPy's own expressions.
"""

from __future__ import annotations

import io
import keyword
import tokenize
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from math import isclose
from typing import Any

_TOLERANCE = 1e-4
_KEYWORDS = frozenset({"True", "False", "None", "and", "or", "not", "in", "is"})
_TOKENS = frozenset({tokenize.NAME, tokenize.NUMBER, tokenize.OP, tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER})


def nearly_equal(one: float, other: float) -> bool:
    """Equal up to the relative tolerance of the published evaluation."""
    return isclose(one, other, rel_tol=_TOLERANCE)


def warm_up() -> None:
    """Load what the first comparison would otherwise wait for."""
    symbolic_equal(r"\frac{1}{2}+x", r"\begin{pmatrix}1\\2\end{pmatrix}")


def symbolic_equal(one: str, other: str) -> bool:
    """Whether two texts are the same expression, equation, number or matrix, by any of the tests."""
    from sympy.core.random import seed  # type: ignore[import-untyped]

    # SymPy tests equality at random points: the same answer gets the same verdict.
    seed(0)
    a, b = _parse(one), _parse(other)
    tests = (_same, _same_difference, _same_equation, _same_number, _same_matrix)
    return any(_holds(test, a, b) for test in tests)


def _holds(test: Callable[[Any, Any], bool], a: Any, b: Any) -> bool:
    try:
        return bool(test(a, b))
    except Exception:  # whatever SymPy raises on objects that a test is not made for, memory and recursion included
        return False


def _same(a: Any, b: Any) -> bool:
    return str(a) == str(b) or bool(a == b)


def _same_difference(a: Any, b: Any) -> bool:
    from sympy import simplify  # type: ignore[import-untyped]

    return bool(a.equals(_sympified(b))) or bool(simplify(a - b) == 0)


def _same_equation(a: Any, b: Any) -> bool:
    return bool(abs(a.lhs - a.rhs).equals(abs(b.lhs - b.rhs)))


def _same_number(a: Any, b: Any) -> bool:
    from sympy import N

    return nearly_equal(float(N(_sympified(b))), float(N(_sympified(a))))


def _sympified(value: Any) -> Any:
    """Text that no parser took, read as SymPy's methods would read it: they would run it as a program."""
    return _parse_python(value.replace("^", "**")) if isinstance(value, str) else value


def _same_matrix(a: Any, b: Any) -> bool:
    if a.shape != b.shape:
        return False
    return bool(_rounded(a).equals(_rounded(b)))


def _rounded(matrix: Any) -> Any:
    return matrix.applyfunc(lambda cell: round(cell, 3))


@lru_cache(maxsize=4096)
def _parse(text: str) -> Any:
    """By the first parser that accepts the text, else the text itself."""
    for parser in (_parse_latex, _parse_python, _parse_matrix_or_list):
        for attempt in _attempts(text):
            try:
                return parser(attempt)
            except Exception:  # parsers raise anything
                continue
    return text


def _attempts(text: str) -> tuple[str, ...]:
    """The text without double escapes first, then as it is; in a matrix a double backslash ends a row."""
    if "matrix}" in text and r"\\begin" not in text:
        return (text,)
    return (text.replace("\\\\", "\\"), text)


def _parse_latex(text: str) -> Any:
    from sympy.parsing.latex import parse_latex  # type: ignore[import-untyped]

    return parse_latex(text)


def _parse_matrix_or_list(text: str) -> Any:
    """What SymPy's own parsers leave: matrices, and lists as lists of their elements.

    The published evaluation knows no sets, intervals or tuples here, and compares two of them as text.
    """
    elements = _list_elements(text)
    return _parse_expression(text) if elements is None else [_parse_expression(element) for element in elements]


def _parse_expression(text: str) -> Any:
    from latex2sympy2_extended import latex2sympy  # type: ignore[import-untyped]
    from sympy import Expr, MatrixBase, Tuple
    from sympy.logic.boolalg import Boolean  # type: ignore[import-untyped]

    parsed = latex2sympy(text, normalization_config=None)
    if not isinstance(parsed, Expr | MatrixBase | Boolean) or parsed.has(Tuple):
        raise ValueError(f"{type(parsed).__name__} is no expression")
    return parsed


def _list_elements(text: str) -> list[str] | None:
    """The elements of `[a,b]`, `{a,b}` or `a;b`, or None where the text is no list."""
    if text[:1] + text[-1:] in ("[]", "{}"):
        text = text[1:-1]
    for separator in (",", ";"):
        elements, depth, start = [], 0, 0
        for at, character in enumerate(text):
            depth += (character in "([{") - (character in ")]}")
            if depth == 0 and character == separator:
                elements.append(text[start:at])
                start = at + 1
        if elements:
            return [*elements, text[start:]]
    return None


def _parse_python(text: str) -> Any:
    """SymPy's reading of Python notation.

    It compiles and runs the text. So only names, numbers and operators get through, no attribute, no string, and no name
    means more than SymPy's mathematics.
    """
    from sympy.parsing.sympy_parser import parse_expr  # type: ignore[import-untyped]

    previous = ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_name = token.type == tokenize.NAME
        if token.type not in _TOKENS or (is_name and not _is_harmless(token.string, previous)):
            raise ValueError(f"{token.string!r} is not mathematics")
        previous = token.string
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of Python about code that people would not write
        return parse_expr(text, global_dict=dict(_names()))


def _is_harmless(name: str, previous: str) -> bool:
    return previous != "." and "__" not in name and (name in _KEYWORDS or not keyword.iskeyword(name))


@cache
def _names() -> dict[str, Any]:
    """What a name of the text may mean; all others become symbols."""
    import sympy

    names: dict[str, Any] = {
        name: value
        for name, value in vars(sympy).items()
        if isinstance(value, sympy.Basic) or (isinstance(value, type) and issubclass(value, sympy.Basic))
    }
    functions = (sympy.sqrt, sympy.cbrt, sympy.root, sympy.real_root)
    names |= {function.__name__: function for function in functions}
    return names | {"max": sympy.Max, "min": sympy.Min, "abs": abs, "pow": pow, "round": round, "__builtins__": {}}
