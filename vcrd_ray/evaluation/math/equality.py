"""Two answers in normal form -> whether they are equal, by the rules of Qwen2.5-Math's evaluation. Knows nothing of replies.

Numbers decide at once; everything else tries structure first (tuples, matrices, equations) and then `symbolic`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vcrd_ray.evaluation.math.extract import LETTERS, last_letter
from vcrd_ray.evaluation.math.symbolic import nearly_equal, symbolic_equal

_BRACKETED = re.compile(r"(\(|\[).+(\)|\])")
_BRACED_LIST = re.compile(r"\{.*,.*\}")
_MATRIX_BEGINS = (r"\begin{pmatrix}", r"\begin{bmatrix}")
_MATRIX_ENDS = (r"\end{pmatrix}", r"\end{bmatrix}")
_GROUPING = str.maketrans("", "", "{}()")


def quick_verdict(prediction: str, gold: str) -> bool | None:
    """The verdict where text, a letter or two numbers decide; None where it takes more."""
    if prediction.strip().lower() == gold.strip().lower():
        return True
    if gold in LETTERS and last_letter(prediction) == gold:
        return True
    found, wanted = _number(prediction), _number(gold)
    if found is not None and wanted is not None:
        # A share counts for a percentage and a percentage for a share.
        return any(nearly_equal(found, allowed) for allowed in (wanted / 100, wanted, wanted * 100))
    return None if prediction else False


def math_equal(prediction: str, gold: str) -> bool:
    """The full verdict. May take any time and memory on what models write."""
    quick = quick_verdict(prediction, gold)
    if quick is not None:
        return quick
    prediction, gold = prediction.strip(), gold.strip()
    if "pmatrix" in prediction and "pmatrix" not in gold:
        gold = _as_matrices(gold)
    return (
        _same_without_brackets(prediction, gold)
        or _same_tuples(prediction, gold)
        or _same_matrices(prediction, gold)
        or _same_equations(prediction, gold)
        or symbolic_equal(prediction, gold)
    )


def _number(text: str) -> float | None:
    text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        pass
    if not text.endswith("%"):
        return None
    try:
        return float(text[:-1].removesuffix("\\")) / 100
    except ValueError:
        return None


def _as_matrices(gold: str) -> str:
    """Lists in braces as matrices of one row each; empty where there are none."""
    lists = (found.strip("{}").replace(",", "\\") for found in _BRACED_LIST.findall(gold))
    return ", ".join(rf"\begin{{pmatrix}}{cells}\end{{pmatrix}}" for cells in lists)


def _same_without_brackets(prediction: str, gold: str) -> bool:
    square = prediction.startswith("[") and prediction.endswith("]") and not gold.startswith("(")
    round_ = prediction.startswith("(") and prediction.endswith(")") and not gold.startswith("[")
    if square or round_:
        prediction, gold = prediction.strip("[]()"), gold.strip("[]()")
    return prediction.translate(_GROUPING).lower() == gold.translate(_GROUPING).lower()


def _same_tuples(prediction: str, gold: str) -> bool:
    """Element by element; whether an interval is open or closed is ignored."""
    if not (_BRACKETED.match(prediction) and _BRACKETED.match(gold)):
        return False
    return _all_equal(prediction[1:-1].split(","), gold[1:-1].split(","))


def _same_matrices(prediction: str, gold: str) -> bool:
    """Cell by cell."""
    if not all(text.startswith(_MATRIX_BEGINS) and text.endswith(_MATRIX_ENDS) for text in (prediction, gold)):
        return False
    found, wanted = _matrix_rows(prediction), _matrix_rows(gold)
    return len(found) == len(wanted) and all(map(_all_equal, found, wanted))


def _matrix_rows(matrix: str) -> list[list[str]]:
    cells = matrix[len(_MATRIX_BEGINS[0]) : -len(_MATRIX_ENDS[0])]
    return [row.strip().split("&") for row in cells.split(r"\\") if row.strip()]


def _all_equal(found: Sequence[str], wanted: Sequence[str]) -> bool:
    return len(found) == len(wanted) and all(map(math_equal, found, wanted))


def _same_equations(prediction: str, gold: str) -> bool:
    """Two equations by the difference of their sides up to its sign; `x=` on one side only is dropped."""
    found, wanted = prediction.split("="), gold.split("=")
    if len(found) == len(wanted) == 2:
        found_difference, wanted_difference = (f"{left.strip()} - ({right.strip()})" for left, right in (found, wanted))
        return symbolic_equal(found_difference, wanted_difference) or symbolic_equal(
            f"-({found_difference})", wanted_difference
        )
    if len(found) == 2 and len(wanted) == 1 and len(found[0].strip()) <= 2:
        return math_equal(found[1], gold)
    if len(found) == 1 and len(wanted) == 2 and len(wanted[0].strip()) <= 2:
        return math_equal(prediction, wanted[1])
    return False
