"""Sets of a config -> what is asked turn by turn and what it is compared with; the answers so far. Knows no engine, no judge.

<folder>/model_answer.jsonl   answers to all turns, as FastChat has them
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vcrd_ray.config import Config
from vcrd_ray.config.base import THINKING, Thinking
from vcrd_ray.config.data import PromptSection
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.evaluation.answers import Answer
from vcrd_ray.evaluation.instruct.dialogue import shown_answer, turn_ids
from vcrd_ray.evaluation.instruct.prompts import JudgePrompt, read_judge_prompts
from vcrd_ray.evaluation.instruct.sets import InstructItem, own_set, published_set, read_items, read_model_answers
from vcrd_ray.grading.thinking import opens_thinking, read_answer
from vcrd_ray.runs.files import write_text
from vcrd_ray.types import Prompt

AnswerCount = Literal["answers", "cut_off", "thought", "unfinished"]

_FILES = {"mt_bench": "question.jsonl"}
_FILE = "distillm2_eval.jsonl"
_JUDGE_PROMPTS = Path("mt_bench") / "judge_prompts.jsonl"


@dataclass(kw_only=True)
class Questions:
    """A set, and what its answers are compared with."""

    name: str
    items: list[InstructItem]
    against: Mapping[str, tuple[str, ...]] | None
    """Another model's answers; None: the items' own references."""
    judge_prompts: Mapping[str, JudgePrompt] | None
    """MT-Bench's; None: the paper's one prompt."""
    thinking: Thinking = THINKING
    """What is taken off before an answer is compared."""
    counts: Counter[AnswerCount] = field(init=False, default_factory=Counter)
    """Of the model's answers, all turns together."""
    answers: dict[str, tuple[str, ...]] = field(init=False)
    """The model's so far, one a turn."""
    no_room: int = field(init=False, default=0)
    """Turns that could not be asked, because they and the longest answer do not fit the model: answered by nothing."""

    def __post_init__(self) -> None:
        self.answers = {item.id: () for item in self.items}
        self._opened: set[str] = set()

    @property
    def num_turns(self) -> int:
        """Of the longest dialogue."""
        return max(len(item.turns) for item in self.items)

    def ask(self, turn: int, *, tokenizer: Any, prompt: PromptSection, room: int) -> dict[str, Prompt]:
        """The turn of each item that has one, by the item's id, behind the answers to earlier turns.

        Items whose turn is longer than `room` are answered by nothing and left out.
        """
        asked = {}
        for item in self.items:
            if len(item.turns) <= turn:
                continue
            ids = turn_ids(item.turns, self.answers[item.id], tokenizer, prompt)
            if len(ids) > room:
                self.take(item.id, "")
                self.no_room += 1
                continue
            # Turns of one question are drawn apart by their names.
            name = item.id if turn == 0 else f"{item.id}@turn-{turn + 1}"
            asked[item.id] = Prompt(id=name, question=item.turns[turn], gold=None, ids=ids)
        self._opened = {id for id, one in asked.items() if opens_thinking(one.ids, tokenizer, self.thinking)}
        return asked

    def take_response(self, id: str, response: Answer, tokenizer: Any) -> None:
        """What the model wrote to the turn that was asked last: judges must not see its thinking, nor the mark that ends a
        turn and what comes behind it. Thinking that does not end leaves no answer."""
        reading = read_answer(response.text, self.thinking, opened=id in self._opened)
        self.counts["answers"] += 1
        self.counts["cut_off"] += response.finish_reason == "length"
        self.counts["thought"] += reading.thinking == "finished"
        self.counts["unfinished"] += reading.thinking == "unfinished"
        self.take(id, shown_answer(reading.answer, tokenizer))

    def take(self, id: str, answer: str) -> None:
        """The answer to the next turn of an item."""
        self.answers[id] += (answer,)

    def write_answers(self, folder: Path, *, model: str) -> None:
        """model_answer.jsonl, in the order of the items."""
        rows = (
            {"question_id": id, "model_id": model, "choices": [{"index": 0, "turns": texts}]}
            for id, texts in self.answers.items()
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "model_answer.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_sets(config: Config) -> list[Questions]:
    """The items of each set.

    Raises:
        DataError: a file is missing or malformed, or lacks answers to compare with.
        ConfigError: a second turn is asked of a model without chat template.
    """
    section = config.evaluate.instruct
    items: dict[str, list[InstructItem]] = {}
    for published in section.sets:
        path = section.data / published / _FILES.get(published, _FILE)
        items[published] = read_items(path, published_set(published))
    for own in section.own:
        made = own_set(own.name, prompt_key=own.prompt_key, reference_key=own.reference_key)
        items[own.name] = read_items(own.path, made)
    found = []
    for name, whole in items.items():
        thinking = config.evaluate.thinking
        chosen, against, prompts = whole[: section.limit], None, None
        if name == "mt_bench" or any(len(item.turns) > 1 for item in chosen):
            prompts = read_judge_prompts(section.data / _JUDGE_PROMPTS)
        if name == "mt_bench" and section.rival is not None:
            against = _rival_answers(section.rival, name, chosen)
        found.append(Questions(name=name, items=chosen, against=against, judge_prompts=prompts, thinking=thinking))
        if found[-1].num_turns > 2:
            raise DataError(f"{name}: judges are asked about two turns at most; cut the questions to their first two")
        if found[-1].num_turns > 1 and config.prompt.template == "raw":
            raise ConfigError(f"prompt.template raw has no second turn, which {name} asks: set it to chat")
    return found


def _rival_answers(rival: Path, name: str, items: list[InstructItem]) -> Mapping[str, tuple[str, ...]]:
    """Another model's answers to the items."""
    ids = {item.id for item in items}
    against = {id: texts for id, texts in read_model_answers(rival).items() if id in ids}
    if ids - against.keys():
        raise DataError(
            f"{rival}: no answers to {len(ids - against.keys())} of {len(ids)} questions of {name}; give"
            " those of a model that answered all"
        )
    return against
