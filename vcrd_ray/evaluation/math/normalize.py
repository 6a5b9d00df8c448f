r"""Text of an answer -> its normal form, by the rules of Qwen2.5-Math's evaluation. Knows nothing of replies or equality.

The rules are those of published scores, their oddities included: single letters are units, so `(a+5)` becomes `(+5)`, and
`\mbox{Saturday}` becomes nothing. Applying them twice may go further than once.
"""

from __future__ import annotations

import re
from functools import cache

from word2number import w2n  # type: ignore[import-untyped]

# Regular expressions, in the order in which they are taken away; the plurals follow.
_UNIT_TEXT = (
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of rs|rd|o|gm|p . m|lb|"
    "tile|per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|g .|h .|t|a|h|no change|men|soldier|pie|bc|excess|st|"
    "inches|noon|percent|by|gal|kmh|c|acre|rise|a . m|th|π r 2|sq|mark|l|toy|coin|sq . m|gallon|° f|profit|minw|yr|"
    "women|feet|am|pm|hr|cu cm|square|v â € ™|are|rupee|rounds|cubic|cc|mtr|s|ohm|number|kmph|day|hour|minute|min|"
    "second|man|woman|sec|cube|mt|sq inch|mp|∏ cm ³|hectare|more|sec|unit|cu . m|cm 2|rs .|rs|kg|g|month|km|m|cm|mm|"
    "apple|liter|loss|yard|pure|year|increase|decrease|d|less|Surface|litre|pi sq m|s .|metre|meter|inch"
)
_UNIT_WORDS = tuple(_UNIT_TEXT.split("|"))

_DROPPED_PREFIXES = ("x=", "y=", "z=", r"x\in", r"y\in", r"z\in", r"x\to", r"y\to", r"z\to")

_ARRAY_BEGIN = re.compile(r"\\begin\{array\}\{.*?\}")
_LAST_TEXT = re.compile(r"\\text\{.*?\}$")
_TEXT = re.compile(r"\\text\{(.*?)\}")
_MBOX = re.compile(r"\\mbox\{.*?\}")
_ZEROS_INSIDE = re.compile(r"(\d+)\.0*([^\d])")
_ZEROS_AT_END = re.compile(r"(\d+)\.0*$")
_SHORT_SQRT = re.compile(r"\\sqrt(\w+)")


def strip_string(text: str, *, keep_units: bool = False) -> str:
    """The normal form of an answer."""
    text = _unify_latex(text.strip().replace("\n", "").rstrip("."))
    without_last = _LAST_TEXT.sub("", text).strip()
    text = without_last or text
    if not keep_units:
        text = _drop_units(text)
    for dropped in (r"^{\circ}", r"^\circ", r"\$", "$", r"\(", r"\)"):
        text = text.replace(dropped, "")
    text = _drop_words(_digits_of_words(text))
    text = _ZEROS_AT_END.sub(r"\1", _ZEROS_INSIDE.sub(r"\1\2", text))
    if not text:
        return ""
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _SHORT_SQRT.sub(r"\\sqrt{\1}", text).replace(" ", "")
    return _slash_to_frac(_brace_fracs(text))


def _unify_latex(text: str) -> str:
    """One spelling of matrices, fractions, relations and braces."""
    text = _ARRAY_BEGIN.sub(r"\\begin{pmatrix}", text.replace(r"\!", "")).replace(r"\end{array}", r"\end{pmatrix}")
    for old, new in (
        ("bmatrix", "pmatrix"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        (r"\neq", r"\ne"),
        (r"\leq", r"\le"),
        (r"\geq", r"\ge"),
        (r"\left", ""),
        (r"\right", ""),
        (r"\{", "{"),
        (r"\}", "}"),
    ):
        text = text.replace(old, new)
    return text


@cache
def _units() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """A piece of text that must be there for the unit to match, and the unit between non-word characters."""
    words = (*_UNIT_WORDS, *(f"{word}s" for word in _UNIT_WORDS))
    return tuple((word.partition(".")[0], re.compile(rf"(^|\W){word}($|\W)")) for word in words)


def _drop_units(text: str) -> str:
    """Without unit words, but never down to nothing."""
    for _ in range(2):
        for piece, unit in _units():
            if piece in text:
                text = unit.sub(r"\1\2", text) or text
    return text


def _digits_of_words(text: str) -> str:
    try:
        return str(w2n.word_to_num(text))
    except Exception:  # the library fails in many ways on what is no number in words
        return text


def _drop_words(text: str) -> str:
    """Without text commands, `x=` and its like, percent signs and "and"; infinity and the imaginary unit in one spelling."""
    text = _TEXT.sub(r"\1", text)
    for prefix in _DROPPED_PREFIXES:
        text = text.replace(prefix, "")
    text = text.replace(r"\emptyset", "{}").replace(r"(-\infty,\infty)", r"\mathbb{R}")
    text = text.replace(r"\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = text.replace("infinity", r"\infty")
    if r"\infty" not in text:
        text = text.replace("inf", r"\infty")
    text = _MBOX.sub("", text.replace("and", "").replace(r"\mathbf", ""))
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    return text


def _brace_fracs(text: str) -> str:
    r"""`\frac12` and `\frac1{2}` -> `\frac{1}{2}`; as it was where an argument is missing."""
    first, *rest = text.split(r"\frac")
    parts = [first]
    for part in rest:
        if part.startswith("{"):
            parts.append(part)
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            parts.append(f"{{{part[0]}}}{part[1:]}")
        else:
            parts.append(f"{{{part[0]}}}{{{part[1]}}}{part[2:]}")
    return r"\frac".join(parts)


def _slash_to_frac(text: str) -> str:
    r"""`3/4` -> `\frac{3}{4}`, of whole numbers and of whatever holds a root."""
    sides = text.split("/")
    if len(sides) != 2 or not all("sqrt" in side or _is_plain_integer(side) for side in sides):
        return text
    return rf"\frac{{{sides[0]}}}{{{sides[1]}}}"


def _is_plain_integer(text: str) -> bool:
    """Whether it is an integer written as Python would write it."""
    try:
        return str(int(text)) == text
    except ValueError:
        return False
