"""What a judge is: one protocol. Each family of judges has a file here, imported only when used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from vcrd_ray.types import FloatArray, JudgeRequest, JudgeScores, StepSolution

IMPLICIT_CHUNK_TOKENS = 512
"""Tokens whose logits exist at a time in a judge of two models: 0.3 GB for a vocabulary of 152,000."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeProfile:
    """What a judge says of itself. The report shows it beside its calibration."""

    fingerprint: str
    """Identity of what answers: a run's checkpoint remembers it, a resume compares it, stored scores are kept under it."""
    family: str
    """The config's name for it, such as value_head."""
    scores: Literal["token", "step"]
    """Whether it can score any next token, or whole steps only."""
    reads: str
    """Where in its input a score is read, in words."""
    trained_on: str
    """Where its training put labels, in words: reads elsewhere extrapolate."""


@runtime_checkable
class Judge(Protocol):
    """Scores r(c, a) of trajectory tokens and of other proposals, score = sigmoid(logit). Stateless between requests."""

    profile: JudgeProfile
    """What it is and what it can do."""

    def score(self, request: JudgeRequest) -> JudgeScores:
        """Logits of every trajectory token and of every proposal.

        A judge of whole steps gives each token the score of its step, and NaN to proposals that differ from it.
        """

    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        """Logit of each step of each solution, read as the judge's authors read it. [solutions] of [steps]"""

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        """Largest difference in logit between `score` and judging random proposals one by one.

        Infinite where an answer is no number; 0 where the request has nothing to compare. The
        caller knows how much is too much for the judge's dtype.
        """
