"""Text of a response -> its final answer, and whether that is right. Knows nothing of models.

The convention is GSM8K's: the answer stands after `####`; without the mark, the last number of the text counts.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_MARK = "####"
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def final_answer(text: str) -> str | None:
    """The answer a text ends with, or None where it states none."""
    marked = text.rpartition(_MARK)[2] if _MARK in text else None
    numbers = _NUMBER.findall(text if marked is None else marked)
    if not numbers:
        return None
    return str(numbers[-1] if marked is None else numbers[0])


def is_correct(response: str, gold: str | None) -> bool:
    """Whether a response's final answer equals the gold one as a number. No gold answer: never."""
    if gold is None:
        return False
    found, wanted = final_answer(response), final_answer(gold)
    if found is None or wanted is None:
        return False
    try:
        return Decimal(found.replace(",", "")) == Decimal(wanted.replace(",", ""))
    except InvalidOperation:
        return False
