"""Task files, prompts and what a response stands for."""

import gzip
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.code.solutions import from_response
from vcrd_ray.evaluation.code.tasks import Mode, base_prompt, chat_prompt, read_tasks, stop_strings

_DATA = Path(os.environ.get("VCRD_DATA", Path(__file__).parents[5] / "shared" / "data"))


def _record(**changes: Any) -> dict[str, Any]:
    record = {
        "task_id": "HumanEval/0",
        "prompt": '\ndef twice(x):\n    """Two times x."""\n',
        "entry_point": "twice",
        "canonical_solution": "    return 2 * x\n",
        "base_input": [[1]],
        "plus_input": [[2]],
        "atol": 0,
    }
    return record | changes


def _write(path: Path, *records: object) -> Path:
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize("name", ["tasks.jsonl", "tasks.jsonl.gz"])
def test_tasks_are_read_in_the_file_s_order_packed_or_not(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path / name, _record(), _record(task_id="Mbpp/3"))
    tasks = read_tasks(path)
    assert [(task.id, task.dataset) for task in tasks] == [("HumanEval/0", "humaneval"), ("Mbpp/3", "mbpp")]
    assert tasks[0].entry_point == "twice" and json.loads(tasks[0].record) == _record()


@pytest.mark.parametrize(
    ("records", "complaint"),
    [
        ([], "no task in"),
        ([_record(), _record()], "holds 1 tasks twice"),
        ([_record(task_id="Other/1")], "line 1 has task_id 'Other/1'"),
        ([_record(), {"task_id": "Mbpp/2", "text": ""}], "line 2 lacks prompt, entry_point"),
        ([[1]], "line 1 is no task: a list, not an object"),
    ],
)
def test_a_file_that_is_no_task_file_is_refused(records: list[object], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=complaint):
        read_tasks(_write(tmp_path / "tasks.jsonl", *records))


def test_a_missing_torn_or_garbled_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        read_tasks(tmp_path / "none.jsonl")
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(json.dumps(_record()).encode())[:-20])
    with pytest.raises(DataError, match="no whole gzip file"):
        read_tasks(torn)
    garbled = tmp_path / "garbled.jsonl"
    garbled.write_text('{"task_id": \n')
    with pytest.raises(DataError, match="line 1 is no task: not JSON"):
        read_tasks(garbled)


def test_prompts_carry_the_task_and_open_a_code_block(tmp_path: Path) -> None:
    (task,) = read_tasks(_write(tmp_path / "tasks.jsonl", _record()))
    stripped = 'def twice(x):\n    """Two times x."""'
    assert base_prompt(task) == stripped + "\n"
    prompt = chat_prompt(task)
    assert prompt.user.endswith(f":\n```\n{stripped}\n```\n")
    assert prompt.response_prefix.endswith(":\n```python\n")


def test_stop_strings_are_the_library_s() -> None:
    spec = find_spec("evalplus")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("evalplus is not installed")
    namespace: dict[str, Any] = {}
    source = Path(spec.submodule_search_locations[0]) / "provider" / "utility.py"
    exec(source.read_text(), namespace)
    assert stop_strings("humaneval", "chat") == (*namespace["EOS"], "\n```\n")
    for dataset in ("humaneval", "mbpp"):
        extra = namespace["extra_eos_for_direct_completion"](dataset)
        assert stop_strings(dataset, "base") == (*namespace["EOS"], *extra)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "response", "code"),
    [
        ("base", "    return 2 * x\n\ndef more(): pass", 'def twice(x):\n    """Two times x."""\n    return 2 * x\n'),
        ("chat", "def twice(x):\n\treturn 2 * x\n```\nIt doubles.", "def twice(x):\n    return 2 * x"),
        ("chat", "def more(): pass\ndef twice(x): pass", "def more(): pass\ndef twice(x): pass"),
        ("chat", "def twice(x): pass\nprint(twice(1))\nif __name__ == 1: pass", "def twice(x): pass"),
        ("chat", "", ""),
    ],
)
def test_a_response_is_cut_at_its_first_stop_string(mode: Mode, response: str, code: str, tmp_path: Path) -> None:
    (task,) = read_tasks(_write(tmp_path / "tasks.jsonl", _record()))
    solution = from_response(task, response, id="a", mode=mode)
    assert (solution.id, solution.task_id, solution.code, solution.raw) == ("a", "HumanEval/0", code, True)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("humaneval_plus/HumanEvalPlus.jsonl.gz", 164),
        ("humaneval_plus/HumanEvalPlus-Mini.jsonl.gz", 164),
        ("mbpp_plus/MbppPlus.jsonl.gz", 378),
    ],
)
def test_the_released_files_are_read_whole(name: str, count: int) -> None:
    path = _DATA / name
    if not path.exists():
        pytest.skip(f"no {path}; set VCRD_DATA to the directory that has it")
    assert len(read_tasks(path)) == count
