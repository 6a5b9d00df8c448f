"""Instruction files -> items with what is asked and the answer to compare with. Knows nothing of judges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcrd_ray.data.json_rows import BadRow, check_whole, objects, shown, value_of
from vcrd_ray.errors import DataError

Row = dict[str, Any]

_NO_ANSWER = "$ERROR$"
"""What FastChat writes where a model's endpoint gave nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructItem:
    """One question of a set."""

    set: str
    id: str
    """Position in the file, from 0, where the data have none of their own."""
    turns: tuple[str, ...]
    """What the user says, character by character as in the file; more than one turn in MT-Bench only."""
    reference: tuple[str, ...]
    """An answer to each turn that a model's is compared with; empty where the set has none."""
    reference_by: str | None
    """Who wrote the reference; None where there is none or nobody is named."""
    gold: tuple[str, ...]
    """Right answers that a judge may be shown; no rival of the model. Empty where the set has none."""
    category: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class InstructSet:
    """The field names of one set's files."""

    name: str
    prompt_key: str
    """Text, or a list with one text a turn."""
    reference_key: str | None = None
    reference_by_key: str | None = None
    reference_by: str | None = None
    """Of all rows, where no field says it."""
    id_key: str | None = None
    category_key: str | None = None
    gold_key: str | None = None
    """A field that some rows may lack."""


def own_set(name: str, *, prompt_key: str, reference_key: str | None) -> InstructSet:
    """Anybody's file."""
    return InstructSet(name=name, prompt_key=prompt_key, reference_key=reference_key)


def published_set(name: str) -> InstructSet:
    """A set by name.

    Raises:
        DataError: there is none of this name.
    """
    if name not in PUBLISHED_SETS:
        raise DataError(f"no instruction set is called {name!r}; there are {', '.join(PUBLISHED_SETS)}")
    return PUBLISHED_SETS[name]


def read_items(path: Path, instruct_set: InstructSet) -> list[InstructItem]:
    """All items of a file, in its order.

    Raises:
        DataError: no such file, nothing in it, a row that is malformed, or two rows of one id.
    """
    items: dict[str, InstructItem] = {}
    for position, (where, row) in enumerate(objects(path, what=instruct_set.name)):
        item = _item(row, position, instruct_set, where)
        if item.id in items:
            raise DataError(f"{where}: id {item.id!r} stands in an earlier row too; make each id unique")
        items[item.id] = item
    return list(items.values())


def read_model_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Answers of a model by the question's id, one text a turn, as FastChat's model_answer/NAME.jsonl has them.

    Raises:
        DataError: the file is missing or malformed, or answers a question twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    for where, row in objects(path, what="model answers"):
        id = _label(row, "question_id", where)
        choices = _value(row, "choices", where)
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise DataError(f"{where}: field 'choices' holds no answer; write [{{\"turns\": [...]}}]")
        if id in found:
            raise DataError(f"{where}: question {id!r} was answered in an earlier row too; keep one answer each")
        found[id] = _answers(choices[0], "turns", where)
    return found


def _item(row: Row, position: int, instruct_set: InstructSet, where: str) -> InstructItem:
    turns = _texts(row, instruct_set.prompt_key, where)
    if not turns or not all(turn.strip() for turn in turns):
        raise DataError(f"{where}: field {instruct_set.prompt_key!r} is empty; fill it or leave the row out")
    reference = () if instruct_set.reference_key is None else _answers(row, instruct_set.reference_key, where)
    if reference and len(reference) != len(turns):
        raise DataError(
            f"{where}: field {instruct_set.reference_key!r} has {len(reference)} answers to {len(turns)} turns; write one each"
        )
    writer = instruct_set.reference_by
    if instruct_set.reference_by_key is not None:
        writer = _label(row, instruct_set.reference_by_key, where)
    gold_key = instruct_set.gold_key
    return InstructItem(
        set=instruct_set.name,
        id=str(position) if instruct_set.id_key is None else _label(row, instruct_set.id_key, where),
        turns=turns,
        reference=reference,
        reference_by=writer,
        gold=() if gold_key is None or row.get(gold_key) is None else _texts(row, gold_key, where),
        category=None if instruct_set.category_key is None else _label(row, instruct_set.category_key, where),
    )


def _value(row: Row, key: str, where: str) -> Any:
    try:
        return value_of(row, key)
    except BadRow as error:
        raise DataError(f"{where}: {error}; add it, or name another") from None


def _answers(row: Row, key: str, where: str) -> tuple[str, ...]:
    """Texts that a model's answers are compared with: winning against nothing says nothing."""
    texts = _texts(row, key, where)
    for text in texts:
        if not text.strip() or text.strip() == _NO_ANSWER:
            raise DataError(
                f"{where}: field {key!r} holds {text!r}, which is no answer to compare with; answer the question, or leave"
                " the row out"
            )
    return texts


def _texts(row: Row, key: str, where: str) -> tuple[str, ...]:
    value = _value(row, key, where)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where}: field {key!r} is neither text nor a list of texts; write one of the two")
    for text in texts:
        _check_whole(text, key, where)
    return tuple(texts)


def _check_whole(text: str, key: str, where: str) -> None:
    try:
        check_whole(text, f"field {key!r}")
    except BadRow as error:
        raise DataError(f"{where}: {error}; correct the row, or leave it out") from None


def _label(row: Row, key: str, where: str) -> str:
    value = _value(row, key, where)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise DataError(f"{where}: field {key!r} is {shown(value)}; write text or a whole number")
    _check_whole(str(value), key, where)
    return str(value)


PUBLISHED_SETS: Mapping[str, InstructSet] = {
    instruct_set.name: instruct_set
    for instruct_set in (
        InstructSet(
            name="alpaca_eval",
            prompt_key="instruction",
            reference_key="output",
            reference_by_key="generator",
            category_key="dataset",
        ),
        # As the paper's protocol asks and answers them.
        InstructSet(
            name="evol_instruct",
            prompt_key="prompt",
            reference_key="generated_text",
            reference_by="gpt-3.5-turbo",
        ),
        InstructSet(
            name="ultrafeedback",
            prompt_key="prompt",
            reference_key="generated_text",
            reference_by="gpt-3.5-turbo",
        ),
        # The same 218 questions as evol_instruct in another order, with their skills and without references.
        InstructSet(name="wizardlm_testset", prompt_key="Instruction", id_key="idx", category_key="Skill"),
        InstructSet(
            name="mt_bench", prompt_key="turns", id_key="question_id", category_key="category", gold_key="reference"
        ),
    )
}
