"""Turns asked behind the model's own answers, and what a judge's words on them come to, on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vcrd_ray.config.data import PromptSection
from vcrd_ray.config.instruct import InstructSection
from vcrd_ray.evaluation.answers import Answer
from vcrd_ray.evaluation.instruct.dialogue import turn_ids
from vcrd_ray.evaluation.instruct.prompts import Messages
from vcrd_ray.evaluation.instruct.questions import Questions
from vcrd_ray.evaluation.instruct.replies import Refusal, Reply
from vcrd_ray.evaluation.instruct.sets import InstructItem
from vcrd_ray.evaluation.instruct.win_rates import win_rates
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.runs.files import read_jsonl


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve_model("tiny:teacher"))


def item(id: str, *turns: str) -> InstructItem:
    return InstructItem(
        set="made",
        id=id,
        turns=turns,
        reference=("reference",) * len(turns),
        reference_by="somebody",
        gold=(),
        category=None,
    )


def questions(*items: InstructItem) -> Questions:
    return Questions(name="made", items=list(items), against=None, judge_prompts=None)


def test_the_second_turn_is_asked_of_dialogues_only_and_behind_the_answer(tokenizer: Any) -> None:
    one = questions(item("a", "Ann has 3 pens.", "And Ben?"), item("b", "Ann has 3 pens."))
    section = PromptSection()
    first = one.ask(0, tokenizer=tokenizer, prompt=section, room=10**6)
    assert {id: prompt.id for id, prompt in first.items()} == {"a": "a", "b": "b"}
    for id in first:
        one.take(id, "So 3.")
    second = one.ask(1, tokenizer=tokenizer, prompt=section, room=10**6)
    assert {id: prompt.id for id, prompt in second.items()} == {"a": "a@turn-2"}
    assert second["a"].ids.tolist() == turn_ids(one.items[0].turns, ("So 3.",), tokenizer, section).tolist()


def test_a_turn_without_room_is_answered_by_nothing(tokenizer: Any, tmp_path: Path) -> None:
    one = questions(item("short", "A."), item("long", "A. " * 50))
    asked = one.ask(0, tokenizer=tokenizer, prompt=PromptSection(), room=40)
    assert list(asked) == ["short"] and one.no_room == 1
    one.take("short", "B.")
    one.write_answers(tmp_path, model="m")
    rows = read_jsonl(tmp_path / "model_answer.jsonl")
    assert [(row["question_id"], row["choices"][0]["turns"]) for row in rows] == [("short", ["B."]), ("long", [""])]


@pytest.mark.parametrize(
    ("text", "shown", "counted"),
    [
        ("<think>Nine.</think>\n\nSo 3.", "So 3.", {"thought": 1, "unfinished": 0}),
        ("Nine.</think>So 3.", "So 3.", {"thought": 1, "unfinished": 0}),
        ("<think>So 3.", "", {"thought": 0, "unfinished": 1}),
        ("So 3.", "So 3.", {"thought": 0, "unfinished": 0}),
    ],
)
def test_judges_do_not_see_what_was_thought(text: str, shown: str, counted: dict[str, int], tokenizer: Any) -> None:
    one = questions(item("a", "q"))
    one.ask(0, tokenizer=tokenizer, prompt=PromptSection(), room=10**6)
    response = Answer(id="a", sample=0, text=text, num_tokens=4, finish_reason="length")
    one.take_response("a", response, tokenizer)
    assert one.answers["a"] == (shown,)
    assert one.counts == {"answers": 1, "cut_off": 1, **counted}


class FirstWins:
    """Finds the answer in front better."""

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply | Refusal]]:
        for index in range(len(prompts)):
            reply = Reply(text="[[A]]", finish_reason="stop", served_model=None, prompt_tokens=1, completion_tokens=1)
            yield index, reply


class Shown:
    """Stages by name: how many replies were expected, how many were counted."""

    def __init__(self) -> None:
        self.stages: dict[str, list[int]] = {}

    @contextmanager
    def __call__(self, stage: str, total: int, unit: str) -> Iterator[Any]:
        self.stages[stage] = [total, 0]
        self._counts = self.stages[stage]
        yield self

    def advance(self, count: int) -> None:
        self._counts[1] += count


def test_every_reply_is_counted_and_every_ruling_kept(tmp_path: Path) -> None:
    one, shown = questions(item("a", "q"), item("b", "q")), Shown()
    for id in ("a", "b"):
        one.take(id, "answer")
    section = InstructSection.model_validate({"order": "both"})
    (figures,) = win_rates(section, FirstWins(), one, tmp_path, show_progress=shown).values()
    assert figures.win_rate.value == 0.5 and figures.inconsistent == 2
    assert shown.stages == {"made judged": [4, 4]}
    assert [row["id"] for row in read_jsonl(tmp_path / "rulings.jsonl")] == ["a", "b"]
