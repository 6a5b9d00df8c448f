"""What is known of both proposals -> one weight a token. Knows nothing of models, losses or Ray.

A weight is a constant of the loss: it scales how strongly a token follows the teacher and never changes where to.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vcrd_ray.config import objective
from vcrd_ray.types import FloatArray, ScoredProposals

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """One weight a token, and why it is what it is. All [N]."""

    weight: FloatArray
    judged: BoolArray
    """The judge's scores made the weight."""
    clipped: BoolArray
    """A bound of the rule was reached."""
    invalid: BoolArray
    """A score was NaN or infinite where one was needed; the weight is 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherProbabilities:
    """What the rule without a judge reads off the teacher's distribution. All [N]."""

    of_student_argmax: FloatArray
    """p(argmax q)."""
    collision: FloatArray
    """Sum of p^2."""


def token_weights(
    weighting: objective.Weighting,
    *,
    scored: ScoredProposals | None,
    teacher_probabilities: TeacherProbabilities | None,
    num_tokens: int,
    special_ids: Collection[int],
    ends_step: BoolArray | None = None,
) -> Weights:
    """One weight a token from whatever signal the rule declares that it needs.

    Args:
        teacher_probabilities: for the rule without a judge.
        ends_step: where the trajectory's token ends a step, for the rule that asks for it. [N]
    """
    match weighting:
        case objective.CompositeWeighting():
            assert ends_step is not None
            parts = (
                token_weights(
                    part,
                    scored=scored,
                    teacher_probabilities=teacher_probabilities,
                    num_tokens=num_tokens,
                    special_ids=special_ids,
                )
                for part in (weighting.step_end, weighting.mid_step)
            )
            return chosen_weights(ends_step, *parts)
        case objective.UniformWeighting():
            return uniform_weights(num_tokens)
        case objective.TeacherProbWeighting():
            assert teacher_probabilities is not None
            return teacher_prob_weights(
                teacher_probabilities.of_student_argmax,
                teacher_probabilities.collision,
                gamma=weighting.gamma,
                clamp=weighting.clamp,
                eps=weighting.eps,
            )
    assert scored is not None
    match weighting:
        case objective.RatioWeighting():
            return ratio_weights(scored, special_ids=special_ids, eps=weighting.eps, w_max=weighting.w_max)
        case objective.InverseRatioWeighting():
            return inverse_ratio_weights(scored, special_ids=special_ids, eps=weighting.eps, w_max=weighting.w_max)
        case objective.StudentScoreWeighting():
            return student_score_weights(scored, special_ids=special_ids)
        case objective.DifferenceWeighting():
            return difference_weights(scored, special_ids=special_ids, shifted=weighting.shifted)


def ratio_weights(scored: ScoredProposals, *, special_ids: Collection[int], eps: float, w_max: float) -> Weights:
    """w = r(c, a^S) / (r(c, a^T) + eps), on both families of prefixes (VCRD eq. 1), at most `w_max`.

    In log space from the judge's logits, so that nothing is lost where a score is near 0: ln w = ln sigmoid(s_S) -
    ln(sigmoid(s_T) + eps). Exactly 1 where the proposals are equal or either is a special token, which no judge has
    learnt to score.
    """
    asked = (scored.teacher_proposal != scored.student_proposal) & ~_special(scored, special_ids)
    judged, teacher_logit, student_logit = _readable(scored, asked)
    log_eps = np.log(eps) if eps > 0 else -np.inf
    log_weight = _log_sigmoid(student_logit) - np.logaddexp(_log_sigmoid(teacher_logit), log_eps)
    clipped = judged & (log_weight > np.log(w_max))
    with np.errstate(over="ignore"):
        weight = np.where(judged, np.exp(np.minimum(log_weight, np.log(w_max))), 1.0).astype(np.float32)
    # Without a bound a teacher's score of nothing may leave no number.
    judged &= np.isfinite(weight)
    return Weights(
        weight=np.where(judged, weight, np.float32(1)), judged=judged, clipped=clipped, invalid=asked & ~judged
    )


def inverse_ratio_weights(
    scored: ScoredProposals, *, special_ids: Collection[int], eps: float, w_max: float
) -> Weights:
    """w = r(c, a^T) / (r(c, a^S) + eps): the ratio with the roles exchanged."""
    exchanged = ScoredProposals(
        teacher_proposal=scored.student_proposal,
        student_proposal=scored.teacher_proposal,
        teacher_logit=scored.student_logit,
        student_logit=scored.teacher_logit,
    )
    return ratio_weights(exchanged, special_ids=special_ids, eps=eps, w_max=w_max)


def student_score_weights(scored: ScoredProposals, *, special_ids: Collection[int]) -> Weights:
    """w = r(c, a^S), equal proposals included; 1 where a proposal is a special token."""
    asked = ~_special(scored, special_ids)
    # The teacher's score may be missing: judges of whole steps have none for a token of somebody else.
    judged = asked & np.isfinite(scored.student_logit)
    student_logit = np.where(judged, scored.student_logit, 0.0).astype(np.float64)
    weight = np.where(judged, np.exp(_log_sigmoid(student_logit)), 1.0)
    return Weights(
        weight=weight.astype(np.float32), judged=judged, clipped=np.zeros_like(judged), invalid=asked & ~judged
    )


def difference_weights(scored: ScoredProposals, *, special_ids: Collection[int], shifted: bool) -> Weights:
    """w = r(c, a^S) - r(c, a^T), 0 on equal proposals; shifted: max(0, 1 + that). 1 where a proposal is special."""
    asked = ~_special(scored, special_ids)
    judged, teacher_logit, student_logit = _readable(scored, asked)
    difference = np.exp(_log_sigmoid(student_logit)) - np.exp(_log_sigmoid(teacher_logit))
    weight = np.where(judged, np.maximum(0.0, 1.0 + difference) if shifted else difference, 1.0)
    return Weights(
        weight=weight.astype(np.float32), judged=judged, clipped=np.zeros_like(judged), invalid=asked & ~judged
    )


def teacher_prob_weights(
    prob_of_argmax: npt.NDArray[np.floating],
    collision: npt.NDArray[np.floating],
    *,
    gamma: float,
    clamp: float,
    eps: float,
) -> Weights:
    """The PRM-free rule: raw = p(argmax q) / (sum p^2 + eps), w = exp(clip(gamma ln raw, -ln clamp, ln clamp)).

    The denominator is the probability that the teacher gives on average to a token that it samples itself.
    """
    with np.errstate(divide="ignore"):  # a probability of zero becomes the lower bound
        log_weight = gamma * (np.log(prob_of_argmax.astype(np.float64)) - np.log(collision.astype(np.float64) + eps))
    bound = np.log(clamp)
    weight = np.exp(np.clip(log_weight, -bound, bound)).astype(np.float32)
    nowhere = np.zeros(len(weight), dtype=np.bool_)
    return Weights(weight=weight, judged=nowhere, clipped=np.abs(log_weight) > bound, invalid=nowhere)


def chosen_weights(where: BoolArray, there: Weights, elsewhere: Weights) -> Weights:
    """One rule's weights on some tokens, another's on all others."""
    names = ("weight", "judged", "clipped", "invalid")
    return Weights(**{name: np.where(where, getattr(there, name), getattr(elsewhere, name)) for name in names})


def uniform_weights(n: int) -> Weights:
    """w = 1: every token as strong as every other."""
    nowhere = np.zeros(n, dtype=np.bool_)
    return Weights(weight=np.ones(n, dtype=np.float32), judged=nowhere, clipped=nowhere, invalid=nowhere)


def _special(scored: ScoredProposals, special_ids: Collection[int]) -> BoolArray:
    special = np.fromiter(special_ids, dtype=np.int64)
    return np.isin(scored.teacher_proposal, special) | np.isin(scored.student_proposal, special)


def _readable(
    scored: ScoredProposals, asked: BoolArray
) -> tuple[BoolArray, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Where both scores are numbers, and the logits there (0 elsewhere)."""
    judged = asked & np.isfinite(scored.teacher_logit) & np.isfinite(scored.student_logit)
    teacher = np.where(judged, scored.teacher_logit, 0.0).astype(np.float64)
    student = np.where(judged, scored.student_logit, 0.0).astype(np.float64)
    return judged, teacher, student


def _log_sigmoid(logit: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return -np.logaddexp(0.0, -logit)
