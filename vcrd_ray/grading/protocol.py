"""What becomes of a response, and what a grader is. Knows no rules of grading.

What a grader does with a reply has two parts: `settle` is cheap and bounded and settles most, `decide` may take any time and
memory and belongs into a process that may be killed (`pool`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

Item = TypeVar("Item")
"""What a reply is graded against."""


class Verdict(StrEnum):
    """How a reply came out. Only `correct` counts."""

    CORRECT = "correct"
    WRONG = "wrong"
    TIMEOUT = "timeout"
    """Not decided within the time limit."""
    CRASHED = "crashed"
    """The process that should decide it died, as of memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """The verdict on one reply."""

    verdict: Verdict
    prediction: str | None
    """The answer that was read, in normal form; None where the reply is empty or was not read to the end."""

    @property
    def correct(self) -> bool:
        """Whether it counts."""
        return self.verdict is Verdict.CORRECT


@dataclass(frozen=True, kw_only=True, slots=True)
class Pending(Generic[Item]):
    """What has to be decided. Equal ones have equal verdicts."""

    text: str
    """The answer, or the whole reply where `item` is given."""
    gold: str
    item: Item | None = None


class Grader(Protocol[Item]):
    """Rules of grading. Picklable."""

    def settle(self, item: Item, reply: str) -> Grade | Pending[Item]:
        """The grade where it is cheap to tell, else what has to be decided."""
        ...

    def decide(self, pending: Pending[Item]) -> Grade:
        """The grade, at any cost."""
        ...

    def warm_up(self) -> None:
        """Load what the first decision would otherwise wait for."""
        ...


def graded(correct: bool, prediction: str | None) -> Grade:
    """Right or wrong."""
    return Grade(verdict=Verdict.CORRECT if correct else Verdict.WRONG, prediction=prediction)
