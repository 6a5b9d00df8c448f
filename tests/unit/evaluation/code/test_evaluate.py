"""Verdicts by EvalPlus on small tasks made here, from solutions that are right, wrong, and up to no good."""

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.code.evaluate import Rules, evaluate_solutions
from vcrd_ray.evaluation.code.jobs import Workbench, open_workbench
from vcrd_ray.evaluation.code.library import EVALPLUS_VERSION, interpreter_paths, library_paths
from vcrd_ray.evaluation.code.sandbox import Outcome, SandboxError, check_isolation
from vcrd_ray.evaluation.code.solutions import Solution
from vcrd_ray.evaluation.code.tasks import CodeTask, read_tasks
from vcrd_ray.evaluation.code.truth import keep_truth
from vcrd_ray.evaluation.code.verdicts import Check, Verdict, judged

pytestmark = pytest.mark.slow

_RULES = Rules(with_plus=True, sanitize_s=2, max_chars=20_000)
_TWICE: dict[str, Any] = {
    "task_id": "HumanEval/900",
    "prompt": 'def twice(x):\n    """Two times x."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "base_input": [[1], [2]],
    "plus_input": [[3], [-4], [5]],
    "atol": 0,
}
_FIND_ZERO = _TWICE | {
    "task_id": "HumanEval/901",
    "prompt": "def find_zero(xs):\n",
    "entry_point": "find_zero",
    "canonical_solution": "    return -xs[0] / xs[1]\n",
    "base_input": [[[2, 1]]],
    "plus_input": [[[3, 3]], [[0, 1]]],
    "atol": 1e-4,
}
_SIMILAR = _TWICE | {
    "task_id": "Mbpp/2",
    "prompt": "def similar_elements(a, b):\n",
    "entry_point": "similar_elements",
    "canonical_solution": "    return tuple(set(a) & set(b))\n",
    "base_input": [[[3, 4, 5, 6], [5, 7, 4, 10]]],
    "plus_input": [[[1, 2], [2, 1]]],
}
_RIGHT = "def twice(x):\n    return x + x\n"
_PASS, _NOT_RUN = Check(status="pass", failed_input=None), Check(status="unsanitized", failed_input=None)


def _failed(at: int | None, status: Any = "fail") -> Check:
    return Check(status=status, failed_input=at)


_EXPECTED: dict[str, tuple[str, str, Check, Check]] = {
    "loops": ("HumanEval/900", "def twice(x):\n    while x != 2: pass\n    return 4", _failed(0), _failed(0)),
    "right": ("HumanEval/900", _RIGHT, _PASS, _PASS),
    "wrong on plus": ("HumanEval/900", "def twice(x): return 2 * abs(x)", _PASS, _failed(1)),
    "wrong on base": ("HumanEval/900", "def twice(x): return 2 if x == 1 else 2 * x + 1", _failed(1), _failed(0)),
    "no function": ("HumanEval/900", "def thrice(x): return 3 * x", _failed(None), _failed(None)),
    "no Python": ("HumanEval/900", "I cannot do that.", _failed(None), _failed(None)),
    "dies": ("HumanEval/900", "import os\ndef twice(x): os._exit(0)", _failed(0, "timeout"), _failed(0, "timeout")),
    "writes a verdict": (
        "HumanEval/900",
        'import os\ndef twice(x): os.write(1, b\'{"solution": "", "reason": "", "base": {"status": "pass"}}\')',
        _failed(0),
        _failed(0),
    ),
    "kills its judge": (
        "HumanEval/900",
        f"import ctypes, os\nctypes.CDLL(None).kill(os.getppid(), 9)\n{_RIGHT}",
        _PASS,
        _PASS,
    ),
    "a zero": ("HumanEval/901", "def find_zero(xs): return -xs[0] / xs[1] + 1e-6", _PASS, _PASS),
    "no zero": ("HumanEval/901", "def find_zero(xs): return 1.0", _failed(None), _failed(None)),
    "a set in another order": (
        "Mbpp/2",
        "def similar_elements(a, b):\n    assert isinstance(a, tuple)\n    return sorted(set(a) & set(b), reverse=True)",
        _PASS,
        _PASS,
    ),
}
_RAW: dict[str, tuple[str, bool]] = {
    "prose around it": (f"Sure! Here is the program:\n\n{_RIGHT}\nprint(twice(3))\n\nHave fun!", True),
    "too long": (_RIGHT + "# long\n" * 4000, False),
    "too slow": (_RIGHT + "x = {'a': [1, 2, 3]}\n" * 900, False),
    "null": ("\0", False),
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CodeTask]:
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in (_TWICE, _FIND_ZERO, _SIMILAR)))
    return {task.id: task for task in read_tasks(path)}


@pytest.fixture(scope="module")
def judging() -> None:
    if find_spec("evalplus") is None:
        pytest.skip("evalplus is not installed")
    try:
        check_isolation(allow_network=False)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def verdicts(
    judging: None, tasks: dict[str, CodeTask], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Verdict]]:
    """All of the above judged at once, with everything in the environment that misleads EvalPlus."""
    solutions = [Solution(id=id, task_id=of, code=code, raw=False) for id, (of, code, _, _) in _EXPECTED.items()]
    solutions += [Solution(id=id, task_id="HumanEval/900", code=text, raw=True) for id, (text, _) in _RAW.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALPLUS_TIMEOUT_PER_TASK", "1")
        patch.setenv("EVALPLUS_MAX_MEMORY_BYTES", "1")
        patch.setenv("HUMANEVAL_OVERRIDE_PATH", "/no/such/file")
        found = evaluate_solutions(
            solutions,
            list(tasks.values()),
            rules=_RULES,
            cache_dir=tmp_path_factory.mktemp("truths"),
            workers=2,
            allow_network=False,
        )
        yield {verdict.id: verdict for verdict in found}


@pytest.mark.parametrize("id", _EXPECTED)
def test_a_program_gets_the_verdict_it_deserves(id: str, verdicts: dict[str, Verdict]) -> None:
    _, code, base, plus = _EXPECTED[id]
    verdict = verdicts[id]
    assert (verdict.base, verdict.plus, verdict.code, verdict.reason) == (base, plus, code, "")
    assert verdict.plus_passed == (base == plus == _PASS)


@pytest.mark.parametrize("id", _RAW)
def test_a_program_is_picked_out_of_text_or_the_text_is_rejected(id: str, verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts[id]
    assert verdict.plus_passed == _RAW[id][1]
    if id == "prose around it":
        assert verdict.code == _RIGHT.strip()
    if id in ("too long", "too slow"):
        assert (verdict.base, verdict.plus) == (_NOT_RUN, _NOT_RUN)
        assert ("characters" if id == "too long" else "no end after 2 s") in verdict.reason


def test_every_solution_gets_one_verdict(verdicts: dict[str, Verdict]) -> None:
    assert verdicts.keys() == _EXPECTED.keys() | _RAW.keys()


def test_base_alone_says_nothing_of_plus(judging: None, tasks: dict[str, CodeTask], tmp_path: Path) -> None:
    (verdict,) = evaluate_solutions(
        [Solution(id="a", task_id="HumanEval/900", code=_RIGHT, raw=False)],
        list(tasks.values()),
        rules=Rules(with_plus=False, sanitize_s=2, max_chars=100),
        cache_dir=tmp_path,
        workers=1,
        allow_network=False,
    )
    assert verdict.base_passed and verdict.plus is None
    with pytest.raises(ValueError, match="plus inputs were not run"):
        _ = verdict.plus_passed


def test_expected_outputs_are_computed_once_for_each_content(
    judging: None, tasks: dict[str, CodeTask], tmp_path: Path
) -> None:
    task = tasks["HumanEval/900"]
    truth = keep_truth(task, bench=open_workbench(allow_network=False), cache_dir=tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == [truth]
    # A workbench that can run nothing: what is kept needs none, anything else does.
    broken = Workbench(isolation="namespaces", readable=(), library=())
    assert keep_truth(task, bench=broken, cache_dir=tmp_path / "new") == truth
    changed = CodeTask(
        id=task.id, dataset="humaneval", prompt="", entry_point="twice", record=task.record.replace(b"[1]", b"[7]")
    )
    with pytest.raises((SandboxError, DataError)):
        keep_truth(changed, bench=broken, cache_dir=tmp_path / "new")


def test_a_task_whose_own_solution_fails_is_named(judging: None, tmp_path: Path) -> None:
    record = json.dumps(_TWICE | {"canonical_solution": "    raise ValueError('no')\n"}).encode()
    task = CodeTask(id="HumanEval/900", dataset="humaneval", prompt="", entry_point="twice", record=record)
    with pytest.raises(DataError, match=r"HumanEval/900: the canonical solution does not run(?s:.)*ValueError: no"):
        keep_truth(task, bench=open_workbench(allow_network=False), cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_namespaces_the_same_verdicts_come(judging: None, tasks: dict[str, CodeTask]) -> None:
    library = library_paths()
    bench = Workbench(isolation="limits", readable=(*interpreter_paths(), *library), library=library)
    task = tasks["HumanEval/900"]
    try:
        truth = bench.truth(task).stdout
    except SandboxError as error:
        # Started by root, the sandbox's user is another one.
        assert "Permission denied" in str(error)
        pytest.skip(f"this interpreter cannot be started by another user: {error}")
    outcome = bench.check(_RIGHT, task, truth, raw=False, with_plus=True, sanitize_s=2)
    assert json.loads(outcome.stdout)["plus"] == {"status": "pass", "failed_input": None}


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (Outcome(status="overtime", code=-9, stdout=b"", stderr=""), "killed", "no answer in time"),
        (Outcome(status="exited", code=-11, stdout=b"", stderr="fault"), "crashed", "status -11 and no answer: fault"),
        (Outcome(status="exited", code=0, stdout=b'{"base": []}', stderr=""), "crashed", "no answer"),
    ],
)
def test_a_worker_without_an_answer_is_counted_as_not_passed(outcome: Outcome, status: str, reason: str) -> None:
    solution = Solution(id="a", task_id="HumanEval/0", code="", raw=False)
    verdict = judged(solution, outcome, with_plus=True, seconds=1.0)
    assert verdict.base.status == status and reason in verdict.reason
    assert not verdict.base_passed and not verdict.plus_passed


def test_solutions_that_cannot_be_told_apart_or_have_no_task_are_refused(
    tasks: dict[str, CodeTask], tmp_path: Path
) -> None:
    def evaluate(*solutions: Solution) -> None:
        list(
            evaluate_solutions(
                solutions, list(tasks.values()), rules=_RULES, cache_dir=tmp_path, workers=1, allow_network=False
            )
        )

    one = Solution(id="a", task_id="HumanEval/900", code="", raw=False)
    with pytest.raises(DataError, match="1 solution ids are used twice, such as 'a'"):
        evaluate(one, one)
    with pytest.raises(DataError, match="HumanEval/7"):
        evaluate(Solution(id="b", task_id="HumanEval/7", code="", raw=False))
    evaluate()


def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    root = str(Path(__file__).parents[4])
    code = (
        f"import sys; sys.path.insert(0, {root!r})\n"
        "from vcrd_ray.evaluation.code.library import library_paths\n"
        "library_paths()"
    )
    ended = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert f"ConfigError: code benchmarks are judged by evalplus {EVALPLUS_VERSION}" in ended.stderr
    assert f"pip install --no-deps evalplus=={EVALPLUS_VERSION}" in ended.stderr
