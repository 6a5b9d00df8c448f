"""Data sets of rows: the same problems whatever the format, and every reason why a row is rejected."""

from __future__ import annotations

import gzip
import json
import logging
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from vcrd_ray.config.data import HfPrompts, JsonlPrompts, ParquetPrompts, Prompts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.problems import Problem, Reject, check_problems, count_rejects, read_problems
from vcrd_ray.errors import DataError

ROWS = [{"q": f"what is {i} + {i}?", "a": f"it is {2 * i}", "other": i} for i in range(11)]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}],
    [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "second"},
        {"role": "user", "content": "third"},
        {"role": "assistant", "content": "fourth"},
    ],
]
CHATS_ROWS = [{"messages": chat} for chat in CHATS]
KEYS: dict[str, Any] = {"question_key": "q", "answer_key": "a"}


def read(section: Prompts) -> tuple[list[Problem], list[Reject]]:
    return read_problems(section, WorldConfig())


def jsonl(path: Path, *lines: bytes | object) -> Path:
    path.write_bytes(b"".join((x if isinstance(x, bytes) else json.dumps(x).encode()) + b"\n" for x in lines))
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
    return path


def every_format(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> list[Prompts]:
    keys |= {"name": "set"}
    cut = len(rows) // 2
    parquet(folder / "parts" / "train-1.parquet", rows[cut:])
    parquet(folder / "parts" / "train-0.parquet", rows[:cut])
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(folder / "plain")
    datasets.DatasetDict({"train": whole, "test": whole.select([0])}).save_to_disk(folder / "splits")
    return [
        JsonlPrompts(path=jsonl(folder / "set.jsonl", *rows), **keys),
        ParquetPrompts(path=parquet(folder / "set.parquet", rows), **keys),
        ParquetPrompts(path=folder / "parts", **keys),
        HfPrompts(path=str(folder / "plain"), **keys),
        HfPrompts(path=str(folder / "splits"), split="train", **keys),
    ]


@pytest.mark.parametrize("cut", [{}, {"start": 2, "count": 5}, {"shuffle_seed": 3, "start": 1, "count": 6}])
def test_every_format_gives_the_same_problems(tmp_path: Path, cut: dict[str, int]) -> None:
    first, *others = (read(section) for section in every_format(tmp_path, ROWS, **KEYS, **cut))
    assert all(other == first for other in others)
    problems, rejects = first
    assert len(problems) == cut.get("count", len(ROWS)) and not rejects
    for problem in problems:
        row = ROWS[int(problem.id.removeprefix("set-"))]
        assert (problem.question, problem.solution) == (row["q"], row["a"])


def test_a_chat_gives_its_first_question_and_the_answer_to_it(tmp_path: Path) -> None:
    rows = [{"messages": chat} for chat in CHATS]
    for section in every_format(tmp_path, rows, messages_key="messages"):
        problems, _ = read(section)
        assert [(p.question, p.solution) for p in problems] == [("hello", "good day"), ("first", "second")]


def test_without_answers_a_chat_needs_none(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"m": [{"role": "user", "content": "alone"}]})
    problems, _ = read(JsonlPrompts(path=path, messages_key="m", answer_key=None))
    assert [(p.question, p.solution) for p in problems] == [("alone", None)]


def test_a_system_turn_is_kept_and_further_turns_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        problems, _ = read(JsonlPrompts(path=jsonl(tmp_path / "a.jsonl", *CHATS_ROWS), messages_key="messages"))
    assert [p.system for p in problems] == [None, "be kind"]
    assert "1 of 2 chats go on after the first answer" in caplog.text


def test_turns_by_sharegpts_names_are_the_same_turns(tmp_path: Path) -> None:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = [{"c": [{"from": names[t["role"]], "value": t["content"]} for t in chat]} for chat in CHATS]
    problems, _ = read(JsonlPrompts(path=jsonl(tmp_path / "a.jsonl", *CHATS_ROWS), messages_key="messages", name="x"))
    for section in every_format(tmp_path, shared, messages_key="c"):
        assert read(section.model_copy(update={"name": "x"}))[0] == problems


BOM = b"\xef\xbb\xbf"
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\r\n" for row in [*ROWS, {"q": "caf\u00e9?", "a": 1}])
ARRAY = b"[\n" + b",\n".join(LINES.split(b"\r\n")[:-1]) + b"\n]\n"


@pytest.mark.parametrize(
    "content", [LINES, ARRAY, ARRAY.replace(b"\n", b"")], ids=["lines", "array", "array in a line"]
)
@pytest.mark.parametrize(
    "written",
    [
        lambda content: content,
        lambda content: BOM + content,
        lambda content: content.decode().encode("utf-16"),
        lambda content: content.decode().encode("utf-16-be"),
        gzip.compress,
        lambda content: gzip.compress(BOM + content),
    ],
    ids=["plain", "mark", "utf-16", "utf-16-be", "gzip", "gzip with a mark"],
)
def test_a_file_is_read_as_people_have_it(tmp_path: Path, content: bytes, written: Any) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl").write_bytes(written(content))
    plain, other = (read(JsonlPrompts(path=tmp_path / f"{n}.jsonl", **KEYS, name="x")) for n in "ab")
    assert other == plain and len(plain[0]) == len(ROWS) + 1 and not plain[1]


def test_files_laid_end_to_end_keep_no_mark_inside(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes((BOM + LINES) * 2)
    problems, rejects = read(JsonlPrompts(path=tmp_path / "a.jsonl", **KEYS))
    assert len(problems) == 2 * (len(ROWS) + 1) and not rejects


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(LINES)[:-9], "no whole gzip file"),
        (b"PAR1...", "a Parquet file: read it with type parquet"),
        (b"PK\x03\x04...", "a zip archive: unpack it"),
        (b"\xff\xfe{", "is not utf-16"),
        (b'[{"q": "1", "a": "2"},]', "begins an array and is none: not JSON"),
        (b"[" * 60_000, "begins an array and is none: .*nested too deeply"),
        (b'{"data": [{"q": "1", "a": "2"}]}', r"no key 'q' \(there are: data\)"),
    ],
)
def test_a_file_that_is_none_is_named_with_its_cause(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(JsonlPrompts(path=tmp_path / "a.jsonl", **KEYS))


def test_a_column_that_is_no_utf_8_costs_its_rows_alone(tmp_path: Path) -> None:
    texts = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32)), pa.py_buffer(b"a\xffc")]
    )
    pq.write_table(pa.table({"q": texts, "a": ["1", "2", "3"]}), tmp_path / "a.parquet")
    problems, (reject,) = read(ParquetPrompts(path=tmp_path / "a.parquet", **KEYS, max_reject_share=0.5))
    assert [p.id for p in problems] == ["a-0", "a-2"]
    assert reject.kind == "not_utf8" and reject.reason.startswith("row 1: not UTF-8")


def test_a_shuffled_count_is_a_sample_without_replacement(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"q": str(i), "a": i} for i in range(200)))
    draws = [
        [p.id for p in read(JsonlPrompts(path=path, **KEYS, shuffle_seed=seed, count=50))[0]] for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    assert all(len(set(draw)) == 50 for draw in draws)


def chat(*roles: str) -> dict[str, Any]:
    return {"q": "ok", "a": "ok", "m": [{"role": role, "content": "text"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        (b'{"q": "\xff", "a": "1"}', "not_utf8", "not UTF-8"),
        (b'{"q": "1", "a"', "not_json", "not JSON"),
        ([1], "not_an_object", "a list, not an object"),
        ({"q": "1"}, "missing_key", "no key 'a' (there are: q)"),
        ({"q": "  ", "a": "1"}, "not_text", "'q' is no text"),
        ({"q": None, "a": "1"}, "not_text", "'q' is no text: None"),
        ({"q": "1", "a": ["1"]}, "not_text", "'a' is no text"),
        ({"q": "1", "a": float("nan")}, "not_text", "'a' is no text: nan"),
        ({"q": True, "a": "1"}, "not_text", "'q' is no text: True"),
        (b'{"q": "1", "a": 1e999}', "not_text", "'a' is no text: inf"),
        (b'{"q": "1", "a": -Infinity}', "not_text", "'a' is no text: -inf"),
        (b'{"q": "1", "a": ' + b"9" * 5000 + b"}", "not_json", "not JSON"),
        (b'{"q": "smile \\ud83d", "a": "1"}', "not_text", "'q' is no text: character 6 is half a surrogate pair"),
        (b'{"q": "1", "a": "\\ude00"}', "not_text", "'a' is no text: character 0 is half a surrogate pair"),
        (b'{"q": "1", "\\ud83d": "1"}', "missing_key", "no key 'a' (there are: '\\ud83d', q)"),
        (b"[" * 100_000, "not_json", "nested too deeply"),
        (b'{"q": "1", "a": "1", "x": ' + b"[" * 60_000 + b"]" * 60_000 + b"}", "not_json", "nested too deeply"),
        (b'{"q": ' + b"[" * 900 + b"]" * 900 + b', "a": "1"}', "not_text", "'q' is no text: [[[[...]]]]"),
        ("caf\u00e9".encode("latin1"), "not_utf8", "iconv"),
    ],
)
def test_a_malformed_row_is_counted_by_its_reason(tmp_path: Path, row: object, kind: str, said: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"q": "good", "a": 1.5}, row)
    problems, (reject,) = read(JsonlPrompts(path=path, **KEYS, max_reject_share=0.5))
    assert [(p.id, p.solution) for p in problems] == [("a-0", "1.5")]
    assert reject.kind == kind and reject.reason.startswith("row 1: ") and said in reject.reason
    assert count_rejects([reject]) == {kind: 1}


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ({"m": "text"}, "bad_chat", "no list of turns"),
        ({"m": [{"from": "human"}]}, "bad_chat", "no list of turns"),
        ({"m": []}, "bad_chat", "no user turn (roles: none)"),
        (chat("system", "assistant"), "bad_chat", "no user turn (roles: system, assistant)"),
        (chat("user"), "bad_chat", "no assistant turn directly after"),
        (chat("user", "user", "assistant"), "bad_chat", "no assistant turn directly after"),
        (chat("assistant", "user", "assistant"), "bad_chat", "more than a system turn before"),
        (chat("system", "system", "user", "assistant"), "bad_chat", "more than a system turn before"),
        (chat("user", "assistant", "tool", "assistant"), "bad_chat", "a turn of 'tool' after the first answer"),
        (chat("user", "assistant", "system"), "bad_chat", "a turn of 'system' after the first answer"),
        ({"m": [{"from": "human", "value": "q"}, {"from": "gpt", "value": None}]}, "not_text", "'content' is no text"),
        ({"m": [{"role": "system", "content": None}, *chat("user", "assistant")["m"]]}, "not_text", "no text: None"),
        ({"m": [{"role": 1, "content": "x"}]}, "bad_chat", "no list of turns"),
        ({"m": [{"role": "user", "content": None}]}, "not_text", "'content' is no text"),
        ({"x": 1}, "missing_key", "no key 'm'"),
    ],
)
def test_a_malformed_chat_is_counted_by_its_reason(tmp_path: Path, row: object, kind: str, said: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", chat("user", "assistant"), row)
    problems, (reject,) = read(JsonlPrompts(path=path, messages_key="m", max_reject_share=0.5))
    assert len(problems) == 1 and reject.kind == kind and said in reject.reason


def test_nulls_of_a_column_are_rejected(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [{"q": "x", "a": "y"}, {"q": None, "a": "y"}])
    _, (reject,) = read(ParquetPrompts(path=path, **KEYS, max_reject_share=0.5))
    assert reject.kind == "not_text" and json.loads(reject.row) == {"q": None, "a": "y"}


def test_line_separators_inside_a_text_end_no_row(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three"
    line = json.dumps({"q": text, "a": "1"}, ensure_ascii=False).encode()
    problems, rejects = read(JsonlPrompts(path=jsonl(tmp_path / "a.jsonl", line + b"\r", b"", line), **KEYS))
    assert [p.question for p in problems] == [text, text] and not rejects


def test_a_missing_column_names_those_that_are_there(tmp_path: Path) -> None:
    for section in every_format(tmp_path, ROWS)[1:]:
        with pytest.raises(DataError, match=r"no column 'question' \(there are: q, a, other\).*question_key"):
            check_problems(section)


def test_what_is_not_there_is_named_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    for section, said in (
        (ParquetPrompts(path=tmp_path / "none"), "no such file or folder"),
        (ParquetPrompts(path=tmp_path / "empty"), r"no \*\.parquet file"),
        (ParquetPrompts(path=tmp_path / "bad.parquet"), "not a readable Parquet file"),
        (HfPrompts(path=str(tmp_path / "none")), "no such folder"),
        (HfPrompts(path=str(tmp_path / "empty")), "not written by save_to_disk.*type parquet"),
    ):
        with pytest.raises(DataError, match=said):
            check_problems(section)


def test_options_of_the_hub_are_refused_for_a_folder(tmp_path: Path) -> None:
    *_, plain, splits = every_format(tmp_path, ROWS, **KEYS)
    for section, change, said in (
        (plain, {"split": "train"}, "without splits"),
        (plain, {"subset": "main"}, "subset has no effect"),
        (plain, {"revision": "main"}, "revision has no effect"),
        (splits, {"split": None}, "which split.*one of train, test"),
        (splits, {"split": "dev"}, "no split 'dev'.*one of train, test"),
    ):
        with pytest.raises(DataError, match=said):
            read(section.model_copy(update=change))


def test_a_data_set_of_the_hub_is_left_alone_in_a_dry_run_and_named_when_out_of_reach() -> None:
    section = HfPrompts(path="openai/no-such-set", subset="main", split="train")
    assert check_problems(section, fetch=False) == ["openai/no-such-set"]
    with pytest.raises(DataError, match=r"openai/no-such-set.*subset main, split train.*save_to_disk"):
        read(section)
    with pytest.raises(DataError, match=r"set prompts\.split"):
        read(section.model_copy(update={"split": None}))


def test_without_the_library_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        read(HfPrompts(path="owner/name", split="train"))


@pytest.mark.parametrize("other", [{"question_key": "q"}, {"answer_key": "a"}])
def test_a_chat_takes_no_other_keys(other: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="no effect beside messages_key"):
        HfPrompts(path="x/y", messages_key="messages", **other)  # type: ignore[arg-type]
