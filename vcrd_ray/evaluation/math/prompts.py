"""A question -> the prompt that published scores were made with, as literal text and as turns. Knows no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vcrd_ray.evaluation.math.shots import Shot

PromptStyle = Literal["qwen25-math-cot", "qwen-boxed"]

_BOXED = r"Please reason step by step, and put your final answer within \boxed{}."
_BETWEEN = "\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """A prompt for a model that is asked through a chat template of its own."""

    system: str
    user: str


def turns(question: str, *, style: PromptStyle, shots: Sequence[Shot] = ()) -> Turns:
    """The system message and the user's, the shots before the question."""
    asked = _BETWEEN.join([*(f"{shot.question}\n{shot.answer}" for shot in shots), question])
    return _zero_shot(asked, style)


def prompt_text(question: str, *, style: PromptStyle, shots: Sequence[Shot] = ()) -> str:
    """The text that is tokenized as it stands, without a template.

    `qwen25-math-cot` puts all shots into the one user turn, `qwen-boxed` makes each a dialogue of its own.
    """
    if style == "qwen25-math-cot":
        text = _chatml(turns(question, style=style, shots=shots))
    else:
        dialogues = [_chatml(_zero_shot(shot.question, style)) + shot.answer for shot in shots]
        text = _BETWEEN.join([*dialogues, _chatml(_zero_shot(question, style))])
    return text.strip(" ")


def _zero_shot(asked: str, style: PromptStyle) -> Turns:
    if style == "qwen25-math-cot":
        return Turns(system=_BOXED, user=asked)
    return Turns(system="You are a helpful assistant.", user=f"{asked}\n{_BOXED}")


def _chatml(asked: Turns) -> str:
    return f"<|im_start|>system\n{asked.system}<|im_end|>\n<|im_start|>user\n{asked.user}<|im_end|>\n<|im_start|>assistant\n"
