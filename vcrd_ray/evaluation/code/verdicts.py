"""What became of a solution. Knows nothing of how it was run but the answers of the worker that did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from vcrd_ray.evaluation.code.sandbox import Outcome
from vcrd_ray.evaluation.code.solutions import Solution
from vcrd_ray.evaluation.code.worker import CheckAnswer, CheckResult

Status = Literal["pass", "fail", "timeout", "killed", "crashed", "unsanitized"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """How a program did on a set of inputs."""

    status: Status
    """`pass`, `fail` and `timeout` are EvalPlus's; a program that dies counts as `timeout` there.

    `killed`: nothing came back in time and the sandbox was ended. `crashed`: the sandbox ended by itself. `unsanitized`:
    the text was too long or too slow to sanitize and nothing was run.
    """
    failed_input: int | None
    """Index of the first input that failed, where EvalPlus tells."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """How a solution did."""

    id: str
    task_id: str
    base: Check
    plus: Check | None
    """On the plus inputs alone; None where they were not asked for."""
    code: str
    """What was run."""
    reason: str
    """Why the status is none of EvalPlus's; empty where it is."""
    seconds: float

    @property
    def base_passed(self) -> bool:
        """Right by HumanEval or MBPP."""
        return self.base.status == "pass"

    @property
    def plus_passed(self) -> bool:
        """Right by HumanEval+ or MBPP+: on the base inputs and on the plus inputs.

        Raises:
            ValueError: the plus inputs were not run.
        """
        if self.plus is None:
            raise ValueError(f"{self.id}: the plus inputs were not run; evaluate with_plus")
        return self.base_passed and self.plus.status == "pass"


def judged(solution: Solution, outcome: Outcome, *, with_plus: bool, seconds: float) -> Verdict:
    """The verdict that a worker came to, or that its end stands for."""
    if outcome.status == "overtime":
        return unjudged(solution, "killed", "no answer in time", with_plus=with_plus, seconds=seconds)
    try:
        answer: CheckAnswer = json.loads(outcome.stdout)
        if answer["base"] is None:
            return unjudged(solution, "unsanitized", answer["reason"], with_plus=with_plus, seconds=seconds)
        return Verdict(
            id=solution.id,
            task_id=solution.task_id,
            base=_check(answer["base"]),
            plus=None if answer["plus"] is None else _check(answer["plus"]),
            code=answer["solution"],
            reason="",
            seconds=seconds,
        )
    except (ValueError, LookupError, TypeError):
        # The worker died, or what it judged wrote into its answer.
        reason = f"the worker ended with status {outcome.code} and no answer: {outcome.stderr}"
        return unjudged(solution, "crashed", reason, with_plus=with_plus, seconds=seconds)


def unjudged(solution: Solution, status: Status, reason: str, *, with_plus: bool, seconds: float) -> Verdict:
    """The verdict on a solution that EvalPlus did not judge: not passed, and why."""
    check = Check(status=status, failed_input=None)
    return Verdict(
        id=solution.id,
        task_id=solution.task_id,
        base=check,
        plus=check if with_plus else None,
        code=solution.code,
        reason=reason,
        seconds=seconds,
    )


def _check(result: CheckResult) -> Check:
    return Check(status=result["status"], failed_input=result["failed_input"])
