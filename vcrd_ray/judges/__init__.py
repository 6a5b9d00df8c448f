"""What a judge is: one protocol. Each family of judges has a file here, imported only when used."""

from typing import Protocol

from vcrd_ray.types import JudgeRequest, JudgeScores


class Judge(Protocol):
    """Scores r(c, a) of trajectory tokens and of other proposals. Stateless between requests."""

    @property
    def fingerprint(self) -> str:
        """Identity of what answers: a run's checkpoint remembers it, a resume compares it."""

    def score(self, request: JudgeRequest) -> JudgeScores:
        """Logits of every trajectory token and of every candidate."""

    def self_check(self, request: JudgeRequest, *, num_leaves: int, seed: int) -> float:
        """Largest difference in logit between `score` and judging random candidates one by one.

        Infinite where an answer is no number; 0 where the request has nothing to compare. The
        caller knows how much is too much for the judge's dtype.
        """
