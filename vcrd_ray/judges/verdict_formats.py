"""How judges that write verdicts are shown a solution, and where their verdicts are read. Runs no model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import ModelError
from vcrd_ray.types import IntArray, StepSolution

_NUMBERED = re.compile(r"Step \d+:")


class VerdictFormat(Protocol):
    """A template: which tokens are verdicts, and where they are predicted. Knows tokenizers only."""

    verdicts: tuple[int, int]
    """Ids of good and bad."""

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """Input ids, and the index at which each step's verdict is predicted; at least one step. [n] and [steps]"""


class MathShepherdFormat(VerdictFormat):
    """One text with a tag behind each step; the verdict stands in the place of the tag's successor."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, good: str, bad: str, step_tag: str) -> None:
        """Take the judge's tokenizer.

        Raises:
            ModelError: the verdicts are not one known token each, or the tag is unknown.
        """
        self._tokenizer = tokenizer
        self._tag_text = step_tag
        verdicts = tokenizer.encode(f"{good} {bad}", add_special_tokens=False)
        if len(verdicts) != 2:
            raise ModelError(
                f"judge {tokenizer.name_or_path}:"
                f" its tokenizer writes {f'{good} {bad}'!r} in {len(verdicts)} tokens, not one a verdict; set"
                " judge.good and judge.bad to its verdicts"
            )
        self.verdicts = _check_verdicts(tokenizer, verdicts[0], verdicts[1], good=good, bad=bad)
        tag = tokenizer.encode(step_tag, add_special_tokens=False)
        if not tag or tag[-1] == tokenizer.unk_token_id:
            raise ModelError(
                f"judge {tokenizer.name_or_path}:"
                f" its tokenizer does not know the tag {step_tag!r}; set judge.step_tag to its own"
            )
        self._tag = int(tag[-1])

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """Read at the tags.

        Raises:
            ModelError: a tag is no token of its own in the text.
        """
        upto = []
        text = f"{solution.question} "
        for number, step in enumerate(solution.steps, start=1):
            numbered = step if _NUMBERED.match(step) else f"Step {number}: {step}"
            text += f"{numbered} {self._tag_text}"
            upto.append(text)
            text += "\n"
        ids = self._tokenizer.encode(upto[-1])
        tags = [place for place, i in enumerate(ids) if i == self._tag]
        if len(tags) > len(upto):
            # Question or steps hold the tag themselves.
            tags = [n - 1 for n in _prefix_lengths(self._tokenizer.encode, upto[-1], ids, upto) or ()]
        if len(tags) != len(upto) or any(ids[place] != self._tag for place in tags):
            raise ModelError(
                f"judge {self._tokenizer.name_or_path}, template math_shepherd:"
                f" its tokenizer does not write the tag {self._tag_text!r} as one token"
                " behind each step; set judge.step_tag to the tag it was trained with"
            )
        return np.asarray(ids, dtype=np.int32), np.asarray(tags, dtype=np.int32)


class RlhflowFormat(VerdictFormat):
    """A chat in which the user gives steps and the assistant verdicts; read at what precedes a verdict."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, good: str, bad: str) -> None:
        """Take the judge's tokenizer.

        Raises:
            ModelError: it has no chat template, or does not know the verdicts.
        """
        if tokenizer.chat_template is None:
            raise ModelError(
                f"judge {tokenizer.name_or_path}, template rlhflow:"
                f" its tokenizer has no chat template, in which its input is written"
            )
        self._tokenizer = tokenizer
        self._good_text = good
        ids = [(self._encode(text) or [-1])[-1] for text in (good, bad)]
        self.verdicts = _check_verdicts(tokenizer, ids[0], ids[1], good=good, bad=bad)

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """Read at the last token of the prompt for each verdict.

        Raises:
            ModelError: the chat template does not write a conversation as the beginning of a longer one.
        """
        messages: list[dict[str, str]] = []
        upto = []
        for number, step in enumerate(solution.steps):
            messages.append({"role": "user", "content": step if number else f"{solution.question} {step}"})
            upto.append(self._template(messages, add_generation_prompt=True))
            messages.append({"role": "assistant", "content": self._good_text})
        whole = self._template(messages, add_generation_prompt=False)
        ids = self._encode(whole)
        lengths = _prefix_lengths(self._encode, whole, ids, upto)
        if lengths is None or any(n >= len(ids) or ids[n] != self.verdicts[0] for n in lengths):
            raise ModelError(
                f"judge {self._tokenizer.name_or_path}, template rlhflow: its chat template does not put the verdict"
                f" {self._good_text!r} directly behind the prompt for it, so there is no place to read it; use the"
                " tokenizer files published with the judge"
            )
        # What follows the last place is never looked at.
        return np.asarray(ids[: lengths[-1]], dtype=np.int32), np.asarray(lengths, dtype=np.int32) - 1

    def _template(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


def _check_verdicts(
    tokenizer: PreTrainedTokenizerBase, good_id: int, bad_id: int, *, good: str, bad: str
) -> tuple[int, int]:
    unknown = [text for text, i in ((good, good_id), (bad, bad_id)) if i < 0 or i == tokenizer.unk_token_id]
    if unknown:
        raise ModelError(
            f"judge {tokenizer.name_or_path}:"
            f" its tokenizer does not know the verdict {unknown[0]!r}; set judge.good and judge.bad to its verdicts"
        )
    if good_id == bad_id:
        raise ModelError(
            f"judge {tokenizer.name_or_path}:"
            f" the verdicts {good!r} and {bad!r} are the same token {good_id}; set judge.good and judge.bad to"
            " different ones"
        )
    return int(good_id), int(bad_id)


def _prefix_lengths(
    encode: Callable[[str], list[int]], whole: str, ids: Sequence[int], prefixes: Sequence[str]
) -> list[int] | None:
    """How many ids each prefix of a text has; None where the ids of a prefix are not the first ids of the whole."""
    if any(not whole.startswith(prefix) for prefix in prefixes):
        return None
    # Once over the text where tokens end at the cuts; else prefix by prefix.
    pieces = [encode(whole[a:b]) for a, b in pairwise([0, *map(len, prefixes), len(whole)])]
    if [i for piece in pieces for i in piece] == list(ids):
        ends: npt.NDArray[np.int64] = np.cumsum([len(piece) for piece in pieces[:-1]])
        return [int(end) for end in ends]
    parts = [encode(prefix) for prefix in prefixes]
    if any(part != list(ids[: len(part)]) for part in parts):
        return None
    return [len(part) for part in parts]
