"""Instruction files, published and anybody's."""

import gzip
import json
from pathlib import Path

import pytest

from tests.unit.evaluation.instruct.instruct_data import instruct_file
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.instruct.sets import InstructItem, InstructSet, published_set, read_items, read_model_answers

_ALPACA_ROW = {"dataset": "koala", "instruction": " Hi?\n", "output": "Hello.", "generator": "text_davinci_003"}


def _read(tmp_path: Path, name: str, *rows: object, array: bool = False) -> list[InstructItem]:
    path = tmp_path / "set.json"
    path.write_text(json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_items(path, published_set(name))


@pytest.mark.parametrize(
    ("file", "name", "count", "writers", "turns"),
    [
        ("alpaca_eval/distillm2_eval.jsonl", "alpaca_eval", 805, {"text_davinci_003"}, 1),
        ("evol_instruct/distillm2_eval.jsonl", "evol_instruct", 218, {"gpt-3.5-turbo"}, 1),
        ("evol_instruct/WizardLM_testset.jsonl", "wizardlm_testset", 218, {None}, 1),
        ("ultrafeedback/distillm2_eval.jsonl", "ultrafeedback", 2000, {"gpt-3.5-turbo"}, 1),
        ("mt_bench/question.jsonl", "mt_bench", 80, {None}, 2),
    ],
)
def test_published_files_are_read_whole(file: str, name: str, count: int, writers: set[str | None], turns: int) -> None:
    items = read_items(instruct_file(file), published_set(name))
    assert len(items) == len({item.id for item in items}) == count
    assert {item.reference_by for item in items} == writers
    assert all(len(item.turns) == turns and len(item.reference) in (0, turns) for item in items)
    assert all(bool(item.reference) == (writers != {None}) for item in items)


def test_mt_bench_has_gold_beside_its_turns_and_no_rival() -> None:
    items = read_items(instruct_file("mt_bench/question.jsonl"), published_set("mt_bench"))
    assert {len(item.gold) for item in items if item.category in ("math", "reasoning")} == {2}
    assert {item.category for item in items} >= {"writing", "coding", "extraction"}
    assert items[0].id == "81"


def test_text_is_kept_character_by_character(tmp_path: Path) -> None:
    (item,) = _read(tmp_path, "alpaca_eval", _ALPACA_ROW)
    assert (item.turns, item.reference, item.reference_by) == ((" Hi?\n",), ("Hello.",), "text_davinci_003")
    assert (item.id, item.category, item.set) == ("0", "koala", "alpaca_eval")


def test_an_array_reads_as_lines_do(tmp_path: Path) -> None:
    rows = [_ALPACA_ROW, _ALPACA_ROW | {"instruction": "Line\u2028separator"}]
    assert _read(tmp_path, "alpaca_eval", *rows, array=True) == _read(tmp_path, "alpaca_eval", *rows)


def test_anybody_s_file_is_read_by_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(
        '{"n": 7, "ask": "A?", "best": "a", "kind": "x"}\n\n{"n": 8, "ask": ["B?", "C?"], "best": ["b", "c"], "kind": "y"}\n'
    )
    mine = InstructSet(
        name="mine", prompt_key="ask", reference_key="best", reference_by="Eve", id_key="n", category_key="kind"
    )
    assert [(i.id, i.turns, i.reference, i.reference_by, i.category) for i in read_items(path, mine)] == [
        ("7", ("A?",), ("a",), "Eve", "x"),
        ("8", ("B?", "C?"), ("b", "c"), "Eve", "y"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("[]", "has no rows"),
        ("[1]", "item 1: a int, not an object"),
        ('[{"prompt": "q"', "not JSON"),
        ('{"prompt": "q", "generated_text": "a"}\n{"prompt"', "line 2: not JSON"),
        ('{"prompt": "q"}\n', "line 1: no key 'generated_text' .there are: prompt.; add it, or name another"),
        ('{"prompt": 3, "generated_text": "a"}\n', "line 1: field 'prompt' is neither text nor a list"),
        ('{"prompt": [], "generated_text": "a"}\n', "line 1: field 'prompt' is empty"),
        ('{"prompt": " ", "generated_text": "a"}\n', "line 1: field 'prompt' is empty"),
        ('{"prompt": ["q", "r"], "generated_text": "a"}\n', "has 1 answers to 2 turns"),
        ('[{"prompt": "q", "generated_text": ""}]', "item 1: field 'generated_text' holds '', which is no answer"),
        (
            '{"prompt": ["q", "r"], "generated_text": ["a", "$ERROR$"]}',
            "line 1: field 'generated_text' holds .\\$ERROR",
        ),
        ('{"prompt": "q", "generated_text": null}', "line 1: field 'generated_text' is neither text"),
        ('{"prompt": "q \\ud83d", "generated_text": "a"}', "line 1: field 'prompt' is no text: character 2 is half"),
        ("[" * 60_000, "nested too deeply"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        read_items(path, published_set("evol_instruct"))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("turn", ["", " ", "$ERROR$", None, "\ud83d"])
def test_a_rivals_answer_that_is_none_is_refused(tmp_path: Path, turn: str | None) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"question_id": 81, "choices": [{"turns": ["a", turn]}]}))
    with pytest.raises(DataError, match=r"line 1: .*turns"):
        read_model_answers(path)


def test_marks_and_packing_change_nothing(tmp_path: Path) -> None:
    text = b'[{"prompt": "caf\xc3\xa9?", "generated_text": "a"}]'
    found = []
    for written in (text, b"\xef\xbb\xbf" + text, gzip.compress(text), text.decode().encode("utf-16")):
        (tmp_path / "set.json").write_bytes(written)
        found.append(read_items(tmp_path / "set.json", published_set("evol_instruct")))
    assert all(items == found[0] for items in found) and found[0][0].turns == ("caf\xe9?",)


def test_two_rows_of_one_id_are_refused(tmp_path: Path) -> None:
    row = {"question_id": 81, "category": "math", "turns": ["a", "b"]}
    with pytest.raises(DataError, match="line 2: id '81' stands in an earlier row"):
        _read(tmp_path, "mt_bench", row, row)


def test_an_id_that_is_neither_number_nor_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"field 'question_id' is \[\]"):
        _read(tmp_path, "mt_bench", {"question_id": [], "category": "math", "turns": ["a", "b"]})


def test_a_missing_file_and_an_unknown_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl cannot be read"):
        read_items(tmp_path / "nowhere.jsonl", published_set("ultrafeedback"))
    with pytest.raises(DataError, match="'alpaca'; there are alpaca_eval, evol_instruct"):
        published_set("alpaca")
