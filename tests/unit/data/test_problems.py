"""Data sets: what is read, what is rejected and why."""

import json
from pathlib import Path

import pytest

from vcrd_ray.config.data import JsonlPrompts, TinyPrompts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.problems import make_examples, read_problems, tokenize_prompts, write_rejects
from vcrd_ray.errors import DataError
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

WORLD = WorldConfig()


def jsonl(tmp_path: Path, lines: list[str], **changes: object) -> JsonlPrompts:
    file = tmp_path / "set.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return JsonlPrompts(path=file, **changes)  # type: ignore[arg-type]


def test_malformed_rows_are_rejected_with_their_reason_and_the_rest_is_kept(tmp_path: Path) -> None:
    lines = [
        '{"question": "1+1?", "answer": "#### 2"}',
        "{not json",
        '{"question": "", "answer": "1"}',
        "[1]",
        '{"answer": "x"}',
    ]
    problems, rejects = read_problems(jsonl(tmp_path, lines, max_reject_share=1.0), WORLD)
    assert [p.id for p in problems] == ["set-0"]
    assert [r.reason.split(":")[0] for r in rejects] == ["row 1", "row 2", "row 3", "row 4"]
    assert "no key 'question'" in rejects[-1].reason and rejects[0].row == "{not json"
    write_rejects(tmp_path / "rejects.jsonl", rejects)
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 4


def test_too_many_malformed_rows_stop_the_run(tmp_path: Path) -> None:
    lines = ['{"question": "a", "answer": "1"}', "{broken"]
    with pytest.raises(DataError, match=r"1 of 2 rows are malformed.*first reason: row 1"):
        read_problems(jsonl(tmp_path, lines), WORLD)


@pytest.mark.parametrize("lines", [[], ["{broken"]])
def test_a_data_set_without_a_usable_row_is_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match="no usable row"):
        read_problems(jsonl(tmp_path, lines), WORLD)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: no such file"):
        read_problems(JsonlPrompts(path=tmp_path / "nowhere.jsonl"), WORLD)


def test_rows_are_cut_out_by_start_and_count_and_keep_their_numbers(tmp_path: Path) -> None:
    lines = [json.dumps({"q": f"{i}?", "a": i}) for i in range(9)]
    section = jsonl(tmp_path, lines, question_key="q", answer_key="a", start=3, count=2)
    problems, _ = read_problems(section, WORLD)
    assert [(p.id, p.question, p.solution) for p in problems] == [("set-3", "3?", "3"), ("set-4", "4?", "4")]


def test_long_prompts_and_examples_are_rejected_not_cut() -> None:
    tokenizer = load_tokenizer(resolve_model("tiny:student-base"))
    problems, _ = read_problems(TinyPrompts(seed=1, count=30), WORLD)
    lengths = [len(p.ids) for p in tokenize_prompts(problems, tokenizer, max_length=1000)[0]]
    limit = sorted(lengths)[15]
    kept, rejects = tokenize_prompts(problems, tokenizer, max_length=limit)
    assert len(kept) + len(rejects) == 30 and rejects and all(len(p.ids) <= limit for p in kept)
    with pytest.raises(DataError, match="all are longer than 2 tokens"):
        tokenize_prompts(problems, tokenizer, max_length=2)
    with pytest.raises(DataError, match="no example to train on"):
        make_examples(problems, tokenizer, max_length=2)


def test_examples_end_with_the_end_of_sequence_token() -> None:
    tokenizer = load_tokenizer(resolve_model("tiny:student-base"))
    problems, _ = read_problems(TinyPrompts(seed=1, count=5), WORLD)
    examples, _ = make_examples(problems, tokenizer, max_length=1000)
    for problem, example in zip(problems, examples, strict=True):
        assert example.response_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(example.response_ids[:-1]) == problem.solution
