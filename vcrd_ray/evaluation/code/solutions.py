"""A model's response to a code task -> the program it stands for. Knows nothing of running it.

EvalPlus's sanitizer picks the imports and the definitions that the entry point needs. It parses every span of lines, so it is
slow on long text, and it sees text that nobody checked: it runs in the sandbox, just before the program it leaves. What is too
long for it is put down as `unsanitized` and not judged otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from vcrd_ray.evaluation.code.tasks import CodeTask, Mode, base_prompt, stop_strings


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A program to be judged."""

    id: str
    """Unique among those judged together; one task may have many solutions."""
    task_id: str
    code: str
    raw: bool
    """Whether the code is to be picked out of the text first, as EvalPlus does with what a model wrote."""


def from_response(task: CodeTask, response: str, *, id: str, mode: Mode) -> Solution:
    """The solution a response stands for.

    The response is what the model wrote after `base_prompt`, or after `chat_prompt`'s response prefix. It is cut at the first
    stop string, for engines that hand the string over or stop late.
    """
    found = (response.find(stop) for stop in stop_strings(task.dataset, mode))
    end = min((position for position in found if position >= 0), default=len(response))
    # EvalPlus's decoders expand tabs before anything else sees the text.
    written = response[:end].replace("\t", "    ")
    return Solution(
        id=id,
        task_id=task.id,
        code=base_prompt(task) + written if mode == "base" else written,
        raw=True,
    )
