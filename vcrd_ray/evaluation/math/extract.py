"""Text of a reply -> the answer it states, by the rules of Qwen2.5-Math's evaluation. Knows nothing of golds.

Linear in the length of the reply. Normalising (`strip_string`) is not, so that it belongs into a process with a time
limit.
"""

from __future__ import annotations

import re
from typing import Literal

AnswerKind = Literal["open", "open_with_units", "choice"]
"""How an answer is read: `open_with_units` keeps unit words, `choice` looks for a letter in the whole reply."""

LETTERS = ("A", "B", "C", "D", "E")

_CHOICE_TRIGGERS = ("choice is", "answer is")
_CHOICE_SPLIT = re.compile("|".join(_CHOICE_TRIGGERS))
_LETTER = re.compile(r"\b(A|B|C|D|E)\b")
_NUMBER = re.compile(r"-?\d*\.?\d+")
_LINE_START = re.compile(r"\n\s*")


def raw_answer(reply: str, kind: AnswerKind) -> str:
    """The answer as the reply has it, before normalisation; empty where it states none."""
    # A token that published models of the family leave in their replies.
    reply = reply.replace("ки", "")
    if kind == "choice":
        return clean_choice(reply)
    answer = _LINE_START.sub("", _stated(reply)).removeprefix(":")
    return answer.removesuffix(".").removesuffix("/")


def _stated(reply: str) -> str:
    """By the first rule that applies."""
    if "final answer is $" in reply and "$. I hope" in reply:
        return reply.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    if "boxed" in reply:
        return last_boxed(reply)
    for trigger in ("he answer is", "final answer is"):
        if trigger in reply:
            return reply.split(trigger)[-1].strip()
    if "答案是" in reply:
        return reply.split("答案是")[1].strip().split("\n\n")[0].strip()
    numbers = _NUMBER.findall(reply.replace(",", ""))
    return str(numbers[-1]) if numbers else ""


def last_boxed(reply: str) -> str:
    """What stands in the braces after the last "boxed", up to the end where they do not close; without braces up to "$"."""
    boxed = reply.split("boxed")[-1]
    if not boxed.startswith("{"):
        return boxed.split("$")[0].strip()
    depth = 0
    for at, character in enumerate(boxed):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return boxed[1:at]
    return boxed[1:]


def clean_choice(reply: str) -> str:
    """The letter a reply chooses: the first after the last "choice is" or "answer is", else the last of all.

    A reply that says so twice goes on with problems of its own: only its first paragraph counts. Without a letter, the
    cleaned text itself.
    """
    reply = reply.strip("\n")
    if any(reply.count(trigger) > 1 for trigger in _CHOICE_TRIGGERS):
        reply = reply.split("\n\n")[0]
    parts = _CHOICE_SPLIT.split(reply)
    return _letter_of(parts[-1], first=len(parts) > 1)


def last_letter(answer: str) -> str:
    """The last letter that stands alone, or the cleaned text itself."""
    return _letter_of(answer, first=False)


def _letter_of(text: str, *, first: bool) -> str:
    text = text.strip("\n").rstrip(".").rstrip("/").strip(" ").lstrip(":")
    letters = _LETTER.findall(text.upper()) or [text.strip().strip(".")]
    return str(letters[0 if first else -1]).rstrip(".").rstrip("/")
