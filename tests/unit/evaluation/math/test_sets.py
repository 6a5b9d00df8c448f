from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.evaluation.math.benchmark_data import benchmark_file, json_lines
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.math.prompts import prompt_text
from vcrd_ray.evaluation.math.sets import PUBLISHED_SETS, MathItem, own_set, published_set, read_items

GOLDEN = sorted(set(PUBLISHED_SETS) - {"math500"})


def _read(tmp_path: Path, name: str, *rows: dict[str, Any]) -> list[MathItem]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_items(path, published_set(name))


@pytest.mark.parametrize("name", GOLDEN)
def test_prompts_and_golds_are_those_of_the_original_program(name: str) -> None:
    math_set = published_set(name)
    items = read_items(benchmark_file(f"{name}/test.jsonl"), math_set)
    golden = json_lines(benchmark_file(f"golden_qwen25_math_cot/{name}.jsonl"))
    assert [(item.idx, item.gold) for item in items] == [(row["idx"], row["gt"]) for row in golden]
    if name == "math":
        assert [item.question for item in items] == [row["question"] for row in golden]
    else:
        prompts = [prompt_text(item.question, style="qwen25-math-cot", shots=math_set.shots) for item in items]
        assert prompts == [row["prompt"] for row in golden]


def test_math500_is_a_part_of_math() -> None:
    of_math = read_items(benchmark_file("math/test.jsonl"), published_set("math"))
    part = read_items(benchmark_file("math500/test.jsonl"), published_set("math500"))
    assert len(part) == 500
    assert {item.question for item in part} <= {item.question for item in of_math}


def test_five_golds_of_the_published_sets_normalise_to_nothing() -> None:
    found = {
        name: [
            item.idx for item in read_items(benchmark_file(f"{name}/test.jsonl"), published_set(name)) if not item.gold
        ]
        for name in GOLDEN
    }
    assert {name: idx for name, idx in found.items() if idx} == {"math": [3526, 3607], "gaokao2023en": [83, 167, 192]}


def test_rows_are_ordered_by_idx(tmp_path: Path) -> None:
    rows = [{"idx": idx, "problem": f"q{idx}", "solution": rf"\boxed{{{idx}}}"} for idx in (3, 1, 2)]
    assert [item.question for item in _read(tmp_path, "math", *rows)] == ["q1", "q2", "q3"]


def test_rows_without_idx_are_numbered(tmp_path: Path) -> None:
    items = _read(tmp_path, "amc23", {"question": "a", "answer": 1.0}, {"question": "b", "answer": 2.5})
    assert [(item.idx, item.gold) for item in items] == [(0, "1"), (1, "2.5")]


@pytest.mark.parametrize(
    ("answer", "suffix"),
    [("True", " (True or False)"), ("false", " (True or False)"), ("No", " (Yes or No)"), ("Nothing", "")],
)
def test_questions_of_two_answers_name_them(tmp_path: Path, answer: str, suffix: str) -> None:
    (item,) = _read(tmp_path, "aime24", {"question": "Is it?", "answer": answer})
    assert item.question == "Is it?" + suffix


def test_choices_follow_the_question_in_parentheses(tmp_path: Path) -> None:
    (item,) = _read(tmp_path, "sat_math", {"question": " Which? ", "options": "A) 1 B) 2 C) (B) D) 4", "Answer": "C"})
    assert item.question == "Which?\nAnswer Choices: (A) 1 (B) 2 (C) (B) (D) 4"
    assert item.kind == "choice"


def test_a_body_without_full_stop_gets_one(tmp_path: Path) -> None:
    (item,) = _read(tmp_path, "svamp", {"Body": "He has 3", "Question": "How many?", "Answer": 3.0})
    assert (item.question, item.gold) == ("He has 3. How many?", "3")


def test_question_goes_before_problem(tmp_path: Path) -> None:
    (item,) = _read(tmp_path, "aime24", {"problem": "p", "question": "q", "answer": "1"})
    assert item.question == "q"


def test_only_the_first_answer_of_olympiadbench_counts(tmp_path: Path) -> None:
    (item,) = _read(tmp_path, "olympiadbench", {"question": "q", "final_answer": ["$2$", "3"]})
    assert item.gold == "2"


def test_minerva_keeps_units(tmp_path: Path) -> None:
    (item,) = _read(tmp_path, "minerva_math", {"problem": "q", "solution": r"\boxed{4.5 m}", "type": "Physics"})
    assert item.gold == "4.5m"


def test_graded_gold_is_one_normalisation_away(tmp_path: Path) -> None:
    boxed = r"x \in [-2,7]"
    (solved,) = _read(tmp_path, "math", {"problem": "q", "solution": rf"\boxed{{{boxed}}}"})
    (stated,) = _read(tmp_path, "amc23", {"problem": "q", "answer": boxed})
    assert (solved.gold, solved.graded_gold) == ("[-2,7]", r"x\in[-2,7]")
    assert (stated.gold, stated.graded_gold) == (r"x\in[-2,7]", "[-2,7]")


def test_anybodys_file_is_read_by_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"idx": "b", "ask": "2+2?", "reply": 4}\n\n{"idx": "a", "ask": "1+1?", "reply": 2}\n')
    items = read_items(path, own_set("mine", question_key="ask", answer_key="reply"))
    assert [(item.set, item.idx, item.question, item.gold) for item in items] == [
        ("mine", "a", "1+1?", "2"),
        ("mine", "b", "2+2?", "4"),
    ]


def test_marks_and_packing_change_nothing(tmp_path: Path) -> None:
    text = b'{"question": "caf\xc3\xa9?", "answer": true}\n'
    found = []
    for written in (text, b"\xef\xbb\xbf" + text, gzip.compress(text), b"[" + text + b"]"):
        (tmp_path / "own.jsonl").write_bytes(written)
        found.append(read_items(tmp_path / "own.jsonl", own_set("mine", question_key="question", answer_key="answer")))
    assert all(items == found[0] for items in found) and found[0][0].raw_gold == "True"


@pytest.mark.parametrize("value", ["null", '""', '["1"]', "{}", "1e999", "NaN", '"\\ud83d"'])
@pytest.mark.parametrize("key", ["question", "answer", "idx"])
def test_a_question_or_answer_that_is_no_text_is_refused(tmp_path: Path, key: str, value: str) -> None:
    if key == "idx" and value == '""':
        pytest.skip("text as good as any")
    row = '{"idx": 1, "question": "q", "answer": 1}'.replace(
        {"idx": "1,", "question": '"q"', "answer": "1}"}[key], value + {"idx": ",", "question": "", "answer": "}"}[key]
    )
    (tmp_path / "own.jsonl").write_text(row)
    with pytest.raises(DataError, match=f"line 1: .*{key}"):
        read_items(tmp_path / "own.jsonl", own_set("mine", question_key="question", answer_key="answer"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ('{"question": "q"}\n', "line 1: no key 'answer' .there are: question"),
        ('{"question": "q", "answer": "1 #### 2"}\n{"question"', "line 2: not JSON"),
        ("[1]\n", "item 1: a int, not an object"),
        ("[1]\n{}\n", "line 1: a list, not an object"),
        ('{"question": "q", "answer": "5"}\n', "line 1: not of the form of gsm8k: 0 marks ####"),
        ('{"question": " ", "answer": "#### 5"}\n', "line 1: 'question' is no text"),
        ('{"question": "q", "answer": 5}\n', "line 1: not of the form of gsm8k"),
        ('{"idx": 1, "question": "q", "answer": "#### 5"}\n' * 2, "line 2: idx 1 stands on an earlier line"),
        ('{"idx": [], "question": "q", "answer": "#### 5"}\n', r"line 1: idx is \[\]"),
        (
            '{"idx": 1, "question": "q", "answer": "#### 5"}\n{"idx": "a", "question": "q", "answer": "#### 5"}\n',
            "mixes numbers and text",
        ),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        read_items(path, published_set("gsm8k"))
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl cannot be read"):
        read_items(tmp_path / "nowhere.jsonl", published_set("gsm8k"))


def test_an_unknown_benchmark_is_answered_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'gsm9k'; there are gsm8k, math, math500"):
        published_set("gsm9k")
