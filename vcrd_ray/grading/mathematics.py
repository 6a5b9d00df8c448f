"""Mathematical text -> expressions, and whether they are equal: math-verify, three of its faults mended. Keeps no time.

What it is asked may take any time and memory: it belongs into a process that may be killed (`pool`). Its own alarms are off,
because they are signals, which no thread but the main one gets.

Mended: numbers near zero are compared by their own size, not to an absolute six decimals; a percentage in a box is a number;
words are compared as words, not as products of letters, which an anagram passes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from vcrd_ray.errors import ConfigError
from vcrd_ray.grading.stated import is_words, says_words

LETTERS = ("A", "B", "C", "D", "E")

_CLOSE = 1e-3
"""Relative difference of two numbers that are equal to the library's six decimals. From 0.001 on these bind alone."""
_DIGITS = 30

Parsed = list[Any]
"""Expressions of sympy, most likely one; behind them the text that was read."""


def check_installed(*, otherwise: str) -> None:
    """
    Args:
        otherwise: what to do without it.

    Raises:
        ConfigError: the library is not installed, or the one that limits its time.
    """
    try:
        import math_verify  # type: ignore[import-untyped]  # noqa: F401
        import pebble  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"grader math_verify: {error}; install vcrd-ray[math] or {otherwise}") from None


def is_right(gold: str, reply: str, *, letters: bool = False) -> tuple[bool, str | None]:
    """Whether one of the answers read from a reply equals the gold, and what was read.

    Args:
        letters: the gold is a choice, A to E.
    """
    if not letters and is_words(gold):
        return says_words(reply, gold)
    predicted = parse(reply, letters=letters)
    found = bool(predicted) and _verify(_gold(gold, letters), predicted)
    return found, str(predicted[-1]) if predicted else None


def is_readable(gold: str) -> bool:
    """Whether the library reads an expression from a gold: no reply can be equal to one that it does not read."""
    from sympy import Basic, MatrixBase

    return any(isinstance(one, Basic | MatrixBase) for one in _gold(gold, letters=False))


def parse(text: str, *, letters: bool = False) -> Parsed:
    """The answer that a text states, by the library's own search for it."""
    parse, _ = _library()
    found = parse(text, letters)
    # In a box it takes the sign for text; behind a formula it reads it.
    if len(found) == 1 and isinstance(found[0], str) and found[0].endswith("%"):
        return parse(f"${found[0].rstrip('%').rstrip(chr(92))}$%", letters) or found
    return found


def warm_up() -> None:
    """Load the library."""
    is_right("0.5", r"\boxed{\frac{1}{2}}")


@lru_cache(maxsize=4096)
def _gold(gold: str, letters: bool) -> Parsed:
    return parse(gold if letters else rf"\boxed{{{gold}}}", letters=letters)


def _verify(gold: Parsed, predicted: Parsed) -> bool:
    _, verify = _library()
    return verify(gold, predicted)


@cache
def _library() -> tuple[Callable[[str, bool], Parsed], Callable[[Parsed, Parsed], bool]]:
    import math_verify  # type: ignore[import-untyped]
    from math_verify import grader

    # It warns that it has no alarm.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # It has no setting for this, and calls it wherever two numbers meet: in sets, matrices, intervals and equations, too.
    grader.sympy_numeric_eq = _by_own_size(grader.sympy_numeric_eq)
    letter = math_verify.StringExtractionConfig(strings=LETTERS)
    open_configs = (math_verify.LatexExtractionConfig(), math_verify.ExprExtractionConfig())

    def parse(text: str, letters: bool) -> Parsed:
        configs = (letter, *open_configs) if letters else open_configs
        return list(math_verify.parse(text, extraction_config=configs, parsing_timeout=None))

    def verify(gold: Parsed, predicted: Parsed) -> bool:
        return bool(math_verify.verify(gold, predicted, timeout_seconds=None))

    return parse, verify


def _by_own_size(numeric_eq: Callable[..., bool]) -> Callable[..., bool]:
    """The library's comparison, which takes all numbers below its last decimal for equal, with a look at their size."""

    def equal(a: Any, b: Any, *precision: int) -> bool:
        return bool(numeric_eq(a, b, *precision)) and not _far_apart(a, b)

    return equal


def _far_apart(a: Any, b: Any) -> bool:
    """Whether two numbers, or formulas of the same symbols at some point, differ by more than rounding."""
    from math_verify.grader import get_pct_val
    from sympy import MatrixBase, Rational, sqrt

    if isinstance(a, MatrixBase) or isinstance(b, MatrixBase):
        return False  # their entries have been compared one by one
    if get_pct_val(a) is not None or get_pct_val(b) is not None:
        return False  # 9 stands for 9%
    try:
        a, b = a.doit(), b.doit()
        if isinstance(a, Rational) and isinstance(b, Rational):
            return bool(a != b)
        if a.free_symbols != b.free_symbols:
            return False
        at = {symbol: sqrt(2 + i) for i, symbol in enumerate(sorted(a.free_symbols, key=str))}
        x, y = (complex(1) * one.subs(at).evalf(_DIGITS) for one in (a, b))
        return bool(abs(x - y) > _CLOSE * max(abs(x), abs(y)))
    except Exception:  # what cannot be looked at closely stays as the library has it
        return False
