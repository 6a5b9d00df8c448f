"""What is asked of the student as a writer of responses, and what comes back. Knows no models and no Ray."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vcrd_ray.training.signals import Future
from vcrd_ray.types import PairBatch, Prompt, Rollout


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyVersion:
    """Where a version lies and what it must be."""

    number: int
    """Updates done when it was published."""
    directory: Path
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseRequest:
    """Micro-batches of one rank and update whose student responses are to be regenerated."""

    version: PolicyVersion
    batches: tuple[PairBatch, ...]
    """With the student responses that there are; regenerated ones take their place."""
    renewed: tuple[tuple[bool, ...], ...]
    """For each pair of each batch, whether its response is regenerated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What a request brought, beside its batches."""

    version: int
    rollouts: tuple[Rollout, ...]
    """New responses under their pairs' ids, in the order of the batches."""
    seconds: float
    """Spent generating."""
    sync_s: float
    """Spent loading and checking the version; 0 where it was there already."""
    canary_difference: float
    """Largest difference of a canary token's log-probability to the trainer's, nats."""


class Answers(Future[list[Rollout]], Protocol):
    """Answers that may be asked after without waiting."""

    def ready(self) -> bool:
        """Whether `result` would come at once."""
        ...


class AnswerSource(Protocol):
    """A published version of the student, as those who watch it see it."""

    def answer(self, version: PolicyVersion, prompts: tuple[Prompt, ...]) -> Answers:
        """Ask for an answer to each prompt; does not wait."""
        ...


class ResponseSource(Protocol):
    """The student as it was some updates ago, as the update loop sees it."""

    def request(self, request: ResponseRequest) -> tuple[list[Future[PairBatch]], Future[Written]]:
        """Ask for responses; does not wait. One answer a batch."""
        ...
