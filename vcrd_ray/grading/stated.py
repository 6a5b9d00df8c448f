"""Text -> the final answer that it states, and whether two answers in words are the same. Knows no mathematics.

Linear in the length of the text.
"""

from __future__ import annotations

import re

MARK = "####"

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_PHRASE = re.compile(r"answer\s*+(?:is\b\s*+:?|:)\s*+([^\n]+)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_WRAPPED = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf|textit|operatorname)\s*\{([^{}]*)\}")
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_WORDS_ONLY = re.compile(r"[A-Za-z][A-Za-z'’.,;&\-\s]*")
_RATIO = re.compile(r"\d+(?:\s*:\s*\d+)+(?:\s*[AaPp]\.?[Mm]\.?)?|\d+\s*[AaPp]\.?[Mm]\.?")
_CHOICE = re.compile(r"[\s(*]*([A-Z])(?!\s*[A-Za-z=+\-*/^_<>])")
_VERDICTS = frozenset(("yes", "no", "odd"))
_FUNCTIONS = frozenset(
    re.findall(
        r"\w+",
        "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp sqrt cbrt pi mod gcd lcm min max det and or"
        " inf infinity deg dx dy dt",
    )
)


def marked_answer(text: str) -> str | None:
    """What stands behind the last mark `####`, on its line, or in the last box; None where there is neither.

    A box that is not closed reaches to the end.
    """
    mark = text.rfind(MARK)
    boxes = list(_BOX.finditer(text))
    if mark < 0 and not boxes:
        return None
    if not boxes or boxes[-1].start() < mark:
        return text[mark + len(MARK) :].partition("\n")[0].strip()
    return _closed(text[boxes[-1].end() :]).strip()


def num_boxes(text: str) -> int:
    """How many boxes a text has."""
    return len(_BOX.findall(text))


def phrased_answer(text: str) -> str | None:
    """What stands behind the last "answer is" or "answer:", up to the end of the sentence; None where nothing does."""
    found = _PHRASE.findall(text)
    return _SENTENCE_END.split(found[-1])[0].strip(" *:") or None if found else None


def last_line(text: str) -> str:
    """The last line with something on it."""
    return text.strip().rpartition("\n")[2].strip()


def words_of(text: str) -> list[str]:
    """Words of two letters or more, but for commands and names of functions."""
    return [word for word in _WORD.findall(text) if word.lower() not in _FUNCTIONS]


def is_words(answer: str) -> bool:
    """Whether an answer is to be compared as text: words, a choice's letter, times and ratios."""
    if _WRAPPED.fullmatch(answer.strip().strip("$")) or _RATIO.fullmatch(answer.strip()):
        return bool(plain(answer))
    if len(answer.strip()) == 1:
        return answer.strip() in "ABCDE"
    words = words_of(answer)
    if _WORDS_ONLY.fullmatch(answer.strip()) is None:
        return False
    return len(words) > 1 or any(len(word) > 3 or word.lower() in _VERDICTS for word in words)


def plain(answer: str) -> str:
    """Without commands for text, dollar signs, emphasis, case, white space at will and punctuation at the ends."""
    text = _WRAPPED.sub(r"\1", answer)
    text = re.sub(r"<\|[^|\n]*\|>|</s>|\\[,;! ]|[\\$*`\"{}]", " ", text)
    return re.sub(" ?: ?", ":", " ".join(text.split())).strip(" .,;:!()").lower()


def says_words(reply: str, gold: str) -> tuple[bool, str | None]:
    """Whether a reply's answer is the gold in words, and what was read: what it marks, else says, else ends with."""
    marked = marked_answer(reply)
    found = [marked] if marked is not None else [phrased_answer(reply), last_line(reply)]
    read = [one for one in found if one is not None and plain(one)]
    wanted = plain(gold)
    if len(wanted) == 1:
        chosen = [_CHOICE.match(_WRAPPED.sub(r"\1", one).strip("$ ")) for one in read]
        if any(match is not None and match[1].lower() == wanted for match in chosen):
            return True, wanted.upper()
    right = any(plain(one) == wanted for one in read)
    return right, plain(read[0]) if read else None


def _closed(text: str) -> str:
    """Up to the brace that closes one that was opened before."""
    depth = 1
    for at, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[:at]
    return text
