"""ProcessBench's figure on files made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vcrd_ray.errors import DataError, ModelError
from vcrd_ray.evaluation.processbench import (
    NO_ERROR,
    BenchItem,
    bench_figures,
    first_error,
    judge_items,
    read_processbench,
)
from vcrd_ray.judges.oracle import OracleJudge
from vcrd_ray.tiny.tokenizer import build_tokenizer
from vcrd_ray.types import FloatArray, StepSolution

QUESTION = "Ann has 12 pens, gets 7. Bob has 20 pens, loses 5. How many in all?"
GOOD = ["so 20-5=15", "7+12 is 19", "15+19=34"]


def item(number: int, steps: Sequence[str], label: int) -> BenchItem:
    return BenchItem(id=f"i-{number}", problem=QUESTION, steps=list(steps), label=label)


class ReadingJudge:
    """Reads a step's score off its text; refuses requests that hold a step called `long`."""

    def __init__(self) -> None:
        self.requests: list[int] = []

    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        self.requests.append(len(solutions))
        if any("long" in solution.steps for solution in solutions):
            raise ModelError("600 tokens with the prompt, but the judge has 512 positions")
        return [np.float32([float(step) for step in solution.steps]) for solution in solutions]


def test_f1_is_the_harmonic_mean_of_both_accuracies() -> None:
    # Three of four errors are found at their own step, one of two right solutions is left alone.
    found = bench_figures("f", [0, 1, 2, 1, -1, -1], [0, 1, 2, 0, -1, 3], threshold=0.5)
    assert (found.error_items, found.error_accuracy) == (4, 0.75)
    assert (found.correct_items, found.correct_accuracy) == (2, 0.5)
    assert found.f1 == pytest.approx(2 * 0.75 * 0.5 / 1.25) and found.skipped == 0


def test_f1_of_nothing_found_is_zero_and_of_one_kind_undefined() -> None:
    assert bench_figures("f", [0, -1], [1, 0], threshold=0.5).f1 == 0
    only = bench_figures("f", [-1, -1], [-1, 0], threshold=0.5)
    assert only.f1 is None and only.error_accuracy is None and only.correct_accuracy == 0.5


@pytest.mark.parametrize(
    ("logits", "threshold", "expected"),
    [
        ([1.0, -0.1, -3.0], 0.5, 1),
        ([1.0, 0.0, 2.0], 0.5, NO_ERROR),
        ([3.0, 1.0], 0.9, 1),
        ([-1.0, -3.0], 0.1, 1),
        ([-2.1], 0.1, NO_ERROR),
    ],
)
def test_the_first_step_below_the_threshold_is_the_error(logits: list[float], threshold: float, expected: int) -> None:
    assert first_error(np.float32(logits), threshold=threshold) == expected


def test_the_oracle_finds_the_first_wrong_step() -> None:
    wrong = ["so 20-5=15", "7+12 is 18", "15+18=33"]
    items = [item(0, GOOD, -1), item(1, wrong, 1), item(2, ["so 20-5=14", *GOOD[1:]], 0), item(3, wrong, 2)]
    found = judge_items(OracleJudge(build_tokenizer(), confidence=0.9), "tiny", items, threshold=0.5)
    assert found.correct_accuracy == 1 and found.error_accuracy == pytest.approx(2 / 3)
    assert found.f1 == pytest.approx(0.8)


def test_items_that_cannot_be_read_are_counted_and_said_and_cost_no_others() -> None:
    items = [item(i, ["long"] if i in (3, 30) else ["1", "-1"], 0 if i in (3, 30) else 1) for i in range(40)]
    items[7] = item(7, ["nan", "1"], 1)
    judge, seen = ReadingJudge(), []
    found = judge_items(judge, "f", items, threshold=0.5, on_batch=seen.append)
    assert found.skipped == 3 and found.error_items == 37 and found.error_accuracy == 1
    assert found.skip_reason is not None and "i-3: 600 tokens" in found.skip_reason
    assert seen == [16, 16, 8] and max(judge.requests) == 16


def test_a_judge_that_can_read_nothing_is_an_error() -> None:
    with pytest.raises(DataError, match=r"none of 1 items.*512 positions"):
        judge_items(ReadingJudge(), "f", [item(0, ["long"], 0)], threshold=0.5)


def rows(path: Path, *content: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
    return path


GOOD_ROW = {"id": "a", "generator": "m", "problem": "p\u2028q", "steps": ["s", "t"], "label": 1}


def test_the_authors_fields_are_read(tmp_path: Path) -> None:
    file = rows(tmp_path / "f.jsonl", GOOD_ROW, {**GOOD_ROW, "label": -1, "final_answer_correct": True}, GOOD_ROW)
    found = read_processbench(file)
    assert [i.label for i in found] == [1, -1, 1] and found[0].problem == "p\u2028q"
    assert found[0].solution == StepSolution(question="p\u2028q", steps=("s", "t"))
    assert len(read_processbench(file, max_items=2)) == 2


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**GOOD_ROW, "label": 2}, "label 2 of 2 steps"),
        ({**GOOD_ROW, "label": "1"}, "label"),
        ({**GOOD_ROW, "steps": []}, "steps"),
        ({"id": "a"}, "problem"),
        ([1], "a list, not an object"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(DataError, match="line 2") as caught:
        read_processbench(rows(tmp_path / "f.jsonl", GOOD_ROW, row))
    assert said in str(caught.value)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_processbench(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="has no rows"):
        read_processbench(rows(tmp_path / "f.jsonl"))


def test_a_threshold_is_compared_in_logits() -> None:
    score = 0.73
    logit = np.float32([math.log(score / (1 - score))])
    assert first_error(logit, threshold=0.74) == 0 and first_error(logit, threshold=0.72) == NO_ERROR
