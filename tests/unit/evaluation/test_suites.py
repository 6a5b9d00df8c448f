"""What a suite's benchmark keeps on disk and what becomes of it, with a benchmark that grades by looking."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vcrd_ray.config import Config
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.errors import ConfigError
from vcrd_ray.evaluation import tables
from vcrd_ray.evaluation.answers import Answer, Benchmark, Graded
from vcrd_ray.evaluation.suites import (
    SuiteRun,
    check_backend,
    no_room_answers,
    num_positions,
    write_questions,
    write_rows,
)
from vcrd_ray.models.checkpoint_files import resolve_model
from vcrd_ray.runs.files import read_jsonl
from vcrd_ray.types import Prompt


class Sums(Benchmark):
    """Right is what says 4."""

    name = "sums"
    samples = 1
    sampling = SamplingSection()
    metrics = ("exact",)
    num_questions = 2

    def __init__(self) -> None:
        self.num_graded = 0

    def prompts(self, tokenizer: Any) -> list[Prompt]:
        return [prompt("0"), prompt("1")]

    def grade(self, answers: Sequence[Answer]) -> list[Graded]:
        self.num_graded += len(answers)
        return [
            Graded(
                id=answer.id,
                sample=answer.sample,
                correct={"exact": answer.text == "4"},
                verdict={"exact": "correct" if answer.text == "4" else "wrong"},
                prediction=answer.text,
            )
            for answer in answers
        ]

    def gold(self, id: str) -> str:
        return "4"

    def close(self) -> None:
        """Nothing was started."""


def prompt(id: str) -> Prompt:
    return Prompt(id=id, question="2 + 2?", gold=None, ids=np.arange(3, dtype=np.int32))


def answer(id: str, text: str) -> Answer:
    return Answer(id=id, sample=0, text=text, num_tokens=1, finish_reason="stop")


def test_verdicts_are_kept_and_not_given_again(tmp_path: Path) -> None:
    file = tmp_path / "grades" / "batch-00000.jsonl"
    first, second = Sums(), Sums()
    shares = []
    for benchmark in (first, second):
        run = SuiteRun(suite="math", benchmark=benchmark, ks=(1,))
        with ThreadPoolExecutor(1) as graders:
            run.grade(graders, [answer("0", "4"), answer("1", "5")], file)
        shares.append(run.figures(confidence=0.95).metrics[0].value)
    assert shares == [0.5, 0.5]
    assert (first.num_graded, second.num_graded) == (2, 0)
    assert [row["correct"]["exact"] for row in read_jsonl(file)] == [True, False]


def test_thinking_is_taken_off_before_answers_are_graded_and_both_readings_are_counted(tmp_path: Path) -> None:
    run = SuiteRun(suite="math", benchmark=Sums(), ks=(1,), opened={"3"})
    texts = ["<think>5</think>4", "<think>4", "4", "4"]
    answers = [answer(str(i), text) for i, text in enumerate(texts)]
    with ThreadPoolExecutor(1) as graders:
        run.grade(graders, [*answers, *no_room_answers([prompt("3")], 1)], tmp_path / "grades.jsonl")
    figures = run.figures(confidence=0.95)
    assert (figures.thought, figures.unfinished) == (1, 2)
    assert (figures.metrics[0].num_correct, figures.metrics[0].num_correct_whole) == (2, 2)
    rows = read_jsonl(tmp_path / "grades.jsonl")
    assert [row["thinking"] for row in rows] == ["finished", "unfinished", "none", "unfinished", "none"]
    assert [row["correct"]["exact"] for row in rows] == [True, False, True, False, False]
    assert rows[3]["correct_whole"] == {"exact": True}


def test_verdicts_on_whole_responses_of_an_earlier_version_are_given_again(tmp_path: Path) -> None:
    file, benchmark = tmp_path / "grades.jsonl", Sums()
    earlier = benchmark.grade([answer("0", "<think>5</think>4")])[0].model_dump(exclude={"thinking", "correct_whole"})
    write_rows(file, [earlier])
    run = SuiteRun(suite="math", benchmark=benchmark, ks=(1,))
    with ThreadPoolExecutor(1) as graders:
        run.grade(graders, [answer("0", "<think>5</think>4")], file)
    assert run.figures(confidence=0.95).metrics[0].value == 1.0


@pytest.mark.parametrize(("cut_off", "warned"), [(0, False), (2, True)])
def test_the_table_warns_where_many_answers_are_cut_off(
    cut_off: int, warned: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = SuiteRun(suite="math", benchmark=Sums(), ks=(1,), cut_off=cut_off)
    with ThreadPoolExecutor(1) as graders:
        run.grade(graders, [answer(str(i), "4") for i in range(4)], tmp_path / "grades.jsonl")
    tables.show([run.figures(confidence=0.95)])
    shown = capsys.readouterr()
    assert f"{cut_off} ({25 * cut_off:.1f}%)" in shown.out
    assert ("warning: sums" in shown.err) is warned


def test_a_question_without_room_is_answered_by_nothing_in_every_sample() -> None:
    made = no_room_answers([prompt("0"), prompt("1")], samples=2)
    assert [(a.id, a.sample) for a in made] == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]
    assert {(a.text, a.num_tokens, a.finish_reason) for a in made} == {("", 0, "no_room")}


def test_questions_stand_beside_their_gold_answers(tmp_path: Path) -> None:
    write_questions(tmp_path / "math" / "sums", Sums(), [prompt("0")])
    (row,) = read_jsonl(tmp_path / "math" / "sums" / "questions.jsonl")
    assert row == {"id": "0", "question": "2 + 2?", "gold": "4"}


@pytest.mark.parametrize(("kept", "backend"), [("math", "lm-eval"), ("code", "lm-eval"), ("lm-eval", "own")])
def test_a_folder_holds_the_figures_of_one_backend(tmp_path: Path, kept: str, backend: Any) -> None:
    check_backend(tmp_path, backend)
    (tmp_path / kept).mkdir()
    with pytest.raises(ConfigError, match="the other backend: choose another --label"):
        check_backend(tmp_path, backend)


def test_the_longest_prompt_and_response_is_the_model_s_unless_vllm_is_told_less() -> None:
    content = json.loads((resolve_model("tiny:teacher") / "config.json").read_text(encoding="utf-8"))
    whole = content["max_position_embeddings"]
    assert num_positions(Config(), "tiny:teacher") == whole
    vllm = {"engine": "vllm", "vllm": {"max_model_len": whole - 1}}
    assert num_positions(Config.model_validate({"teacher": vllm}), "tiny:teacher") == whole - 1
