"""What a model is asked in a dialogue, and what of its words is shown to a judge."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vcrd_ray.config import Config
from vcrd_ray.config.data import PromptSection
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.evaluation.instruct.dialogue import shown_answer, turn_ids
from vcrd_ray.evaluation.instruct.questions import read_sets
from vcrd_ray.evaluation.instruct.sets import read_model_answers
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

TURNS = ("Ann has 3 pens.", "And Ben?")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(resolve_model("tiny:teacher"))


def test_the_second_turn_stands_behind_the_first_and_its_answer(tokenizer: Any) -> None:
    first = turn_ids(TURNS, (), tokenizer, PromptSection())
    second = turn_ids(TURNS, ("So 3.",), tokenizer, PromptSection())
    assert second[: len(first)].tolist() == first.tolist()
    whole = tokenizer.decode(second, skip_special_tokens=False)
    assert whole.index("So 3.") < whole.index("<|user|>And Ben?") and whole.endswith("<|assistant|>")


def test_words_around_questions_stand_around_every_turn(tokenizer: Any) -> None:
    asked = turn_ids(TURNS, ("3.",), tokenizer, PromptSection(prefix="So, ", suffix=" How many?"))
    text = tokenizer.decode(asked, skip_special_tokens=False)
    assert text.count("So, ") == 2 and text.count(" How many?") == 2


def test_a_template_that_takes_one_turn_only_is_named(tokenizer: Any) -> None:
    template = "{% if messages|length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0]['content'] }}"
    narrow = load_tokenizer(resolve_model("tiny:teacher"))
    narrow.chat_template = template
    with pytest.raises(DataError, match="refuses a second turn: one turn"):
        turn_ids(TURNS, ("3.",), narrow, PromptSection())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Yes.<|im_end|>\n<|im_start|>user\nNo?", "Yes."),
        (" Yes.<|endoftext|>more", "Yes."),
        ("<|im_start|>Yes", "Yes"),
        # Not a special token of this tokenizer: HTML.
        ("<s>old</s> new", "<s>old</s> new"),
    ],
)
def test_an_answer_ends_where_its_turn_does(text: str, shown: str) -> None:
    base = SimpleNamespace(
        eos_token="<|endoftext|>", all_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    )
    assert shown_answer(text, base) == shown  # type: ignore[arg-type]


def answers(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_answers_of_a_rival_are_read_as_fastchat_writes_them(tmp_path: Path) -> None:
    row = {"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}], "tstamp": 1.0}
    assert read_model_answers(answers(tmp_path / "a.jsonl", row)) == {"81": ("a", "b")}
    with pytest.raises(DataError, match="line 2: question '81' was answered in an earlier row"):
        read_model_answers(answers(tmp_path / "b.jsonl", row, row))
    with pytest.raises(DataError, match="'choices' holds no answer"):
        read_model_answers(answers(tmp_path / "c.jsonl", {**row, "choices": []}))


@pytest.mark.parametrize("instruct", [{"sets": ["mt_bench"]}, {"rival": "answers.jsonl"}])
def test_mt_bench_and_a_rival_are_given_together(instruct: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give instruct\.rival and mt_bench"):
        Config.model_validate({"evaluate": {"instruct": instruct}})


def two_turn_set(folder: Path, turns: int = 2) -> dict[str, Any]:
    """MT-Bench's files, small, and a rival's answers."""
    bench = folder / "mt_bench"
    bench.mkdir()
    answers(
        bench / "question.jsonl", {"question_id": 1, "category": "writing", "turns": [f"t{i}" for i in range(turns)]}
    )
    for kind in ("pair-v2", "pair-v2-multi-turn"):
        form = {"name": kind, "type": "pairwise", "system_prompt": "", "prompt_template": ""}
        with (bench / "judge_prompts.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(form) + "\n")
    rival = answers(folder / "rival.jsonl", {"question_id": 1, "choices": [{"turns": ["x"] * turns}]})
    return {"data": str(folder), "sets": ["mt_bench"], "rival": str(rival)}


def test_dialogues_that_cannot_be_held_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    instruct = two_turn_set(tmp_path)
    (found,) = read_sets(Config.model_validate({"evaluate": {"instruct": instruct}}))
    assert found.num_turns == 2 and found.against == {"1": ("x", "x")}
    with pytest.raises(ConfigError, match="raw has no second turn"):
        read_sets(Config.model_validate({"evaluate": {"instruct": instruct}, "prompt": {"template": "raw"}}))
    answers(tmp_path / "rival.jsonl", {"question_id": 2, "choices": [{"turns": ["x", "x"]}]})
    with pytest.raises(DataError, match="no answers to 1 of 1 questions of mt_bench"):
        read_sets(Config.model_validate({"evaluate": {"instruct": instruct}}))


def test_a_third_turn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two turns at most"):
        read_sets(Config.model_validate({"evaluate": {"instruct": two_turn_set(tmp_path, turns=3)}}))
