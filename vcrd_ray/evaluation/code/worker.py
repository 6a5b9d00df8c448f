"""One job for EvalPlus, inside the sandbox: expected outputs, or the verdict on one solution. Knows nothing of its walls.

A program of its own: the job comes pickled on stdin, before a check's expected outputs; the answer goes to stdout. The code
it judges runs in children that EvalPlus forks; a child that means to can forge its own verdict, as with EvalPlus itself, and
nothing else.
"""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import signal
import sys
import types
import warnings
from typing import Any, Literal, TypedDict, cast

Status = Literal["pass", "fail", "timeout"]
_Truth = tuple[list[Any], list[float]]
"""Expected outputs, and how long each took in seconds."""


class TruthJob(TypedDict):
    """Expected outputs of a task's canonical solution, with the time each took."""

    kind: Literal["truth"]
    dataset: str
    record: bytes
    """The task's line of the data file."""


class CheckJob(TypedDict):
    """Is a solution right? What a truth job answered for the same task follows on stdin."""

    kind: Literal["check"]
    dataset: str
    record: bytes
    code: str
    raw: bool
    """Whether `code` is to be sanitized first."""
    sanitize_s: float
    with_plus: bool
    min_time_limit_s: float
    time_limit_factor: float


class CheckResult(TypedDict):
    """Status on a set of inputs, and the first input that failed where EvalPlus tells."""

    status: Status
    failed_input: int | None


class CheckAnswer(TypedDict):
    """What a check job answers. Where sanitizing failed, `reason` says why and nothing was run."""

    solution: str
    reason: str
    base: CheckResult | None
    plus: CheckResult | None


class _OutOfTimeError(Exception):
    """Sanitizing took too long."""


def main() -> None:
    """Read the job, do it, answer."""
    job = cast("TruthJob | CheckJob", pickle.load(sys.stdin.buffer))
    truths = _read_truths(job) if job["kind"] == "check" else []
    # Judged code inherits the descriptors 0 to 2 and must neither read the job nor write into the answer.
    answer_fd = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(null, descriptor)
    sys.stdin = io.StringIO()
    warnings.simplefilter("ignore")
    _stand_in_for_downloads()
    answer = _truth(job) if job["kind"] == "truth" else json.dumps(_check(job, truths)).encode()
    with open(answer_fd, "wb") as out:
        out.write(answer)


def _stand_in_for_downloads() -> None:
    """Empty modules for those that EvalPlus downloads with: nothing is downloaded here, and they would take two seconds."""
    parts: dict[str, dict[str, Any]] = {
        "wget": {},
        "tempdir": {},
        "appdirs": {"user_cache_dir": str},
        "datasets": {"load_dataset": None},
    }
    for name, content in parts.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module


def _task(job: TruthJob | CheckJob) -> dict[str, Any]:
    """The task with its inputs as Python values, as EvalPlus reads them."""
    task: dict[str, Any] = json.loads(job["record"])
    if job["dataset"] == "mbpp":
        from evalplus.data.mbpp import mbpp_deserialize_inputs

        for inputs in ("base_input", "plus_input"):
            task[inputs] = mbpp_deserialize_inputs(task["task_id"], task[inputs])
    return task


def _truth(job: TruthJob) -> bytes:
    from evalplus.eval._special_oracle import MBPP_OUTPUT_NOT_NONE_TASKS
    from evalplus.gen.util import trusted_exec

    task = _task(job)
    not_none = job["dataset"] == "mbpp" and task["entry_point"] in MBPP_OUTPUT_NOT_NONE_TASKS
    code = task["prompt"] + task["canonical_solution"]
    base, plus = (
        trusted_exec(code, task[inputs], task["entry_point"], record_time=True, output_not_none=not_none)
        for inputs in ("base_input", "plus_input")
    )
    return pickle.dumps(base) + pickle.dumps(plus)


def _read_truths(job: CheckJob) -> list[_Truth]:
    """Of the base inputs, and of the plus inputs where they are asked for: some tasks have a gigabyte of them."""
    gc.disable()
    truths: list[_Truth] = [pickle.load(sys.stdin.buffer) for _ in range(1 + job["with_plus"])]
    gc.enable()
    # Else every collection in judged code would go through them, and copy their pages.
    gc.freeze()
    return truths


def _check(job: CheckJob, truths: list[_Truth]) -> CheckAnswer:
    task = _task(job)
    code = job["code"]
    if job["raw"]:
        try:
            code = _sanitize(code, task["entry_point"], job["sanitize_s"])
        except Exception as error:
            reason = f"not sanitized: {type(error).__name__}: {error}"
            return CheckAnswer(solution=code, reason=reason, base=None, plus=None)
    base = _run_inputs(job, task, code, "base", truths[0])
    plus = _run_inputs(job, task, code, "plus", truths[1]) if job["with_plus"] else None
    return CheckAnswer(solution=code, reason="", base=base, plus=plus)


def _sanitize(text: str, entry_point: str, limit_s: float) -> str:
    """EvalPlus's own, which parses every span of lines: its time grows with the square of their number."""
    from evalplus.sanitize import sanitize

    def stop(signum: int, frame: object) -> None:
        raise _OutOfTimeError(f"no end after {limit_s:g} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        return str(sanitize(text, entry_point))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _run_inputs(job: CheckJob, task: dict[str, Any], code: str, which: str, truth: _Truth) -> CheckResult:
    import evalplus.eval

    # The release does not count the inputs that find_zero's oracle accepts, and then takes their missing number for a failure;
    # its repository has mended that. A fast check that comes to its end has accepted them all.
    is_uncounted = task["entry_point"] == "find_zero"
    if is_uncounted:
        evalplus.eval._mapping[evalplus.eval._SUCCESS] = "finished"
    expected, times = truth
    status, details = evalplus.eval.untrusted_check(
        job["dataset"],
        code,
        task[f"{which}_input"],
        task["entry_point"],
        expected=expected,
        atol=task["atol"],
        ref_time=times,
        fast_check=True,
        min_time_limit=job["min_time_limit_s"],
        gt_time_limit_factor=job["time_limit_factor"],
    )
    if status in ("pass", "finished"):
        return CheckResult(status="pass", failed_input=None)
    if is_uncounted:
        return CheckResult(status=status, failed_input=None)
    if status == "timeout":
        # Or killed: it was at the input after those it has done.
        return CheckResult(status="timeout", failed_input=len(details))
    # A fast check ends with the input that failed; without any, the program did not come as far as the first.
    return CheckResult(status="fail", failed_input=len(details) - 1 if len(details) else None)


if __name__ == "__main__":
    main()
