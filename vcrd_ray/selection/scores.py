"""Log-probabilities of a response's tokens -> one score. Nothing is trained.

| score | formula | source |
|---|---|---|
| lalp | (1/n) sum_i (1/\\|s_i\\|) sum_{t in s_i} ln q(t \\| x, s_{i-k}.., s_i up to t) | arXiv:2510.03988, eq. 2 |
| aslec_drop | the same without each step's first token | arXiv:2604.06834 |
| naturalness | (1/T) sum_t ln q(t \\| x, y up to t) | GRAPE; "global naturalness" in arXiv:2510.03988 |
| rsr | sum_t min(rank_t, r) / -sum_t ln q(t), low is good | arXiv:2601.14249 |
| correct | 1 where the final answer is the gold one | |
| divergence | share of steps with p(s)^(1/\\|s\\|) > f q(s)^(1/\\|s\\|) | arXiv:2601.09088, whose threshold is not published |

q is the student, p the teacher. A mean over steps, not tokens, gives short steps the weight of long ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vcrd_ray.config.select import SelectSection
from vcrd_ray.selection.candidates import Candidate
from vcrd_ray.selection.windows import TokenScorer, TokenScores, step_windows, whole_response
from vcrd_ray.types import FloatArray

LOWER_IS_BETTER = frozenset({"rsr"})
NEEDS_STEPS = frozenset({"lalp", "aslec_drop", "divergence"})
_SMALLEST_SURPRISAL = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseScore:
    """A score as a quotient: RSR of many responses is the quotient of means (arXiv:2601.14249, A.8), not their mean."""

    numerator: float
    denominator: float = 1.0

    @property
    def value(self) -> float:
        """The score of the response."""
        return self.numerator / self.denominator


def lalp(steps: Sequence[FloatArray]) -> ResponseScore:
    """Local average log-probability: mean over steps of the mean over their tokens (arXiv:2510.03988, eq. 2)."""
    return ResponseScore(numerator=float(np.mean([np.mean(step, dtype=np.float64) for step in steps])))


def aslec_drop(steps: Sequence[FloatArray]) -> ResponseScore | None:
    """LALP without each step's first token, which long steps dilute (arXiv:2604.06834); None if no step is longer."""
    rest = [step[1:] for step in steps if len(step) > 1]
    return lalp(rest) if rest else None


def naturalness(logp: FloatArray) -> ResponseScore:
    """Mean token log-probability of the whole response."""
    return ResponseScore(numerator=float(np.mean(logp, dtype=np.float64)))


def rank_surprisal_ratio(scores: TokenScores, *, rank_clip: int) -> ResponseScore:
    """Mean clipped rank over mean negative log-likelihood (arXiv:2601.14249); low is good."""
    assert scores.rank is not None
    surprisal = -float(np.mean(scores.logp, dtype=np.float64))
    return ResponseScore(
        numerator=float(np.minimum(scores.rank, rank_clip).mean()), denominator=max(surprisal, _SMALLEST_SURPRISAL)
    )


def teacher_step_share(teacher: Sequence[FloatArray], student: Sequence[FloatArray], *, factor: float) -> ResponseScore:
    """Share of steps whose geometric-mean probability under the teacher is above `factor` times the student's."""
    gaps = [
        float(np.mean(p, dtype=np.float64) - np.mean(q, dtype=np.float64))
        for p, q in zip(teacher, student, strict=True)
    ]
    return ResponseScore(numerator=float(np.mean([gap > np.log(factor) for gap in gaps])))


def score_candidates(
    candidates: Sequence[Candidate],
    section: SelectSection,
    *,
    student: TokenScorer | None,
    teacher: TokenScorer | None = None,
) -> list[ResponseScore | None]:
    """The configured score of each response; None where it has none.

    Args:
        student: None only for `correct`.
        teacher: only for `divergence`.
    """
    if section.score == "correct":
        return [None if c.correct is None else ResponseScore(numerator=float(c.correct)) for c in candidates]
    assert student is not None
    if section.score in ("lalp", "aslec_drop"):
        windows = [step_windows(candidate, section.window) for candidate in candidates]
        scores = iter(student.score([document for documents in windows for document in documents]))
        steps = [[next(scores).logp for _ in documents] for documents in windows]
        return [lalp(s) if section.score == "lalp" else aslec_drop(s) for s in steps]
    documents = [whole_response(candidate) for candidate in candidates]
    whole = student.score(documents, ranks=section.score == "rsr")
    if section.score == "naturalness":
        return [naturalness(scores.logp) for scores in whole]
    if section.score == "rsr":
        return [rank_surprisal_ratio(scores, rank_clip=section.rank_clip) for scores in whole]
    assert teacher is not None
    return [
        teacher_step_share(
            [p.logp[step] for step in candidate.steps],
            [q.logp[step] for step in candidate.steps],
            factor=section.divergence_factor,
        )
        for candidate, p, q in zip(candidates, teacher.score(documents), whole, strict=True)
    ]
