"""EvalPlus's data files -> code tasks, what a model is asked in each, and where its answer ends. Knows nothing of running code.

Plain HumanEval and MBPP are the base inputs of the same files: one file serves a benchmark and its plus.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vcrd_ray.data.json_rows import BadRow, read_bytes, row_object
from vcrd_ray.errors import DataError

Dataset = Literal["humaneval", "mbpp"]
Mode = Literal["base", "chat"]

_FIELDS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
_TEXTS = ("task_id", "prompt", "entry_point", "canonical_solution")
_PREFIXES: dict[str, Dataset] = {"HumanEval": "humaneval", "Mbpp": "mbpp"}

# The published protocol's words: other words give other scores.
_INSTRUCTION = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:"
)
_RESPONSE = (
    "Below is a Python script with a self-contained function that solves the problem and passes corresponding tests:"
)
_STOPS = ("<|endoftext|>", "<|endofmask|>", "</s>", "\nif __name__", "\ndef main(", "\nprint(")
_CHAT_STOPS = ("\n```\n",)
_BASE_STOPS: dict[Dataset, tuple[str, ...]] = {
    "humaneval": ("\ndef ", "\nclass ", "\nimport ", "\nfrom ", "\nassert "),
    "mbpp": ('\n"""', "\nassert"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeTask:
    """One problem."""

    id: str
    """As in the file, such as `HumanEval/0`."""
    dataset: Dataset
    prompt: str
    """Signature and docstring, or a docstring with one test."""
    entry_point: str
    record: bytes
    """The line of the file: inputs and canonical solution are read where they are run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatPrompt:
    """What a chat model is asked, and the words its response is made to begin with."""

    user: str
    response_prefix: str


def read_tasks(path: Path) -> list[CodeTask]:
    """The tasks of an EvalPlus file, .jsonl or .jsonl.gz, in its order.

    Raises:
        DataError: no such file, or a line in it that is no task.
    """
    if not path.is_file():
        raise DataError(
            f"no file {path}; download it from the releases of evalplus/humanevalplus_release or mbppplus_release"
        )
    lines = read_bytes(path).split(b"\n")
    tasks = [_task(line.strip(), f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not tasks:
        raise DataError(f"no task in {path}")
    ids = {task.id for task in tasks}
    if len(ids) < len(tasks):
        raise DataError(f"{path} holds {len(tasks) - len(ids)} tasks twice; download it again")
    return tasks


def _task(line: bytes, where: str) -> CodeTask:
    try:
        record = row_object(line)
    except BadRow as error:
        raise DataError(f"{where} is no task: {error}") from None
    missing = [name for name in _FIELDS if name not in record]
    missing += [name for name in _TEXTS if not missing and not isinstance(record[name], str)]
    if missing:
        raise DataError(
            f"{where} lacks {', '.join(missing)}: a file of HumanEval+ or MBPP+ as EvalPlus releases it is needed"
        )
    dataset = _PREFIXES.get(record["task_id"].partition("/")[0])
    if dataset is None:
        raise DataError(f"{where} has task_id {record['task_id']!r}, which is neither HumanEval/N nor Mbpp/N")
    return CodeTask(
        id=record["task_id"],
        dataset=dataset,
        prompt=record["prompt"],
        entry_point=record["entry_point"],
        record=line,
    )


def base_prompt(task: CodeTask) -> str:
    """The text that a base model continues."""
    return task.prompt.strip() + "\n"


def chat_prompt(task: CodeTask) -> ChatPrompt:
    """The user's message, and the start of the assistant's that generation continues, inside an open code block."""
    return ChatPrompt(
        user=f"{_INSTRUCTION}\n```\n{task.prompt.strip()}\n```\n",
        response_prefix=f"{_RESPONSE}\n```python\n",
    )


def stop_strings(dataset: Dataset, mode: Mode) -> tuple[str, ...]:
    """Strings that end a response; none of them belongs to it."""
    return _STOPS + (_CHAT_STOPS if mode == "chat" else _BASE_STOPS[dataset])
