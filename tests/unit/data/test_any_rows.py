"""Any rows: problems, counted rejects, or one clear error of the project; what is kept can be asked and written."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fuzzing import bounded
from vcrd_ray.config.data import JsonlPrompts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.problems import make_examples, read_problems, tokenize_prompts, write_rejects
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.code.tasks import read_tasks
from vcrd_ray.evaluation.instruct import sets as instruct_sets
from vcrd_ray.evaluation.instruct.prompts import read_judge_prompts
from vcrd_ray.evaluation.math import sets as math_sets
from vcrd_ray.evaluation.processbench import read_processbench
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

_MANY = bounded(60)

_WORDS = (
    "question answer m role content from value prompt idx id turns choices solution problem steps label question_id task_id"
    " name type generated_text final_answer"
)
_KEYS = st.sampled_from(_WORDS.split())
_TEXTS = st.text(max_size=12) | st.sampled_from(
    [
        "user",
        "assistant",
        "system",
        "human",
        "gpt",
        "a<eos>b",
        "<|assistant|>",
        "\ud83d",
        "####1",
        "$ERROR$",
        "\\boxed{1}",
    ]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=8
)
_TURN = st.fixed_dictionaries({"role": _TEXTS, "content": _TEXTS}) | st.fixed_dictionaries(
    {"from": _TEXTS, "value": _TEXTS}
)
_ROW = st.one_of(
    _VALUES,
    st.fixed_dictionaries({"question": _TEXTS, "answer": _VALUES, "m": st.lists(_TURN, max_size=4)}),
    st.fixed_dictionaries({"question_id": _SCALARS, "turns": st.lists(_TEXTS, max_size=2), "category": _TEXTS}),
)
_LINE = _ROW.map(lambda row: json.dumps(row).encode()) | st.binary(max_size=20) | st.just(b"[" * 30_000)
_FILES = st.one_of(
    st.lists(_LINE, max_size=5).map(b"\n".join),
    st.lists(_LINE, max_size=3).map(lambda lines: b"[" + b",".join(lines) + b"]"),
    st.lists(_LINE, max_size=3).map(lambda lines: gzip.compress(b"\n".join(lines))),
    st.lists(_LINE, max_size=3).map(lambda lines: b"\xef\xbb\xbf" + b"\n".join(lines)),
)


@cache
def _tokenizer() -> Any:
    return load_tokenizer(resolve_model("tiny:student-base"))


@_MANY
@given(_FILES, st.booleans(), st.booleans())
def test_any_rows_become_problems_or_rejects(content: bytes, chat: bool, answered: bool) -> None:
    keys: dict[str, Any] = {"messages_key": "m"} if chat else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(content)
        section = JsonlPrompts(path=path, max_reject_share=1, answer_key="answer" if answered else None, **keys)
        try:
            problems, rejects = read_problems(section, WorldConfig())
        except DataError:
            return
        write_rejects(Path(folder) / "rejects.jsonl", rejects)
        assert all(reject.reason.startswith("row ") and len(reject.reason) < 1000 for reject in rejects)
        for make in (tokenize_prompts, make_examples):
            try:
                made, refused = make(problems, _tokenizer(), max_length=100_000)  # type: ignore[operator]
                assert len(made) + len(refused) == len(problems)
            except DataError as error:
                assert "no prompt is left" in str(error) or "no example to train on" in str(error)


READERS: dict[str, Callable[[Path], object]] = {
    "own": lambda path: math_sets.read_items(
        path, math_sets.own_set("x", question_key="question", answer_key="answer")
    ),
    **{
        name: lambda path, name=name: math_sets.read_items(path, math_sets.published_set(name))  # type: ignore[misc]
        for name in math_sets.PUBLISHED_SETS
    },
    **{
        f"instruct {name}": lambda path, name=name: instruct_sets.read_items(path, instruct_sets.published_set(name))  # type: ignore[misc]
        for name in instruct_sets.PUBLISHED_SETS
    },
    "model answers": instruct_sets.read_model_answers,
    "judge prompts": read_judge_prompts,
    "processbench": read_processbench,
    "code": read_tasks,
}


@bounded(200)
@given(_FILES, st.sampled_from(sorted(READERS)))
def test_any_benchmark_file_is_read_or_refused(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(content)
        try:
            READERS[name](path)
        except DataError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize("name", READERS)
def test_a_null_where_a_text_belongs_is_refused(tmp_path: Path, name: str) -> None:
    keys = (
        "question problem answer solution Answer Body Question options final_answer turns prompt instruction output choices"
        " generated_text question_id category id steps label name type system_prompt prompt_template generator dataset"
    )
    row = dict.fromkeys(keys.split())
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError):
        READERS[name](tmp_path / "rows.jsonl")
