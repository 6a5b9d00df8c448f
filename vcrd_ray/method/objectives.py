"""An objective of the config -> divergences, row weights and row coefficients. Pure; knows no models and no Ray."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

import numpy as np
import torch

from vcrd_ray import config
from vcrd_ray.config import DivergenceSection, ObjectiveSection
from vcrd_ray.method import divergences
from vcrd_ray.method.curricula import MixingState, TaidState, adaptive_alpha, gradual_factors
from vcrd_ray.method.divergences import Divergence
from vcrd_ray.method.fused import FusedRows, PerSequenceSkew
from vcrd_ray.method.weighting import (
    BoolArray,
    Weights,
    chosen_weights,
    difference_weights,
    inverse_ratio_weights,
    ratio_weights,
    student_score_weights,
    teacher_prob_weights,
    uniform_weights,
)
from vcrd_ray.types import FloatArray, RowLayout, Side, Validity

Reduction = Literal["sequence_mean", "sum", "global_token_mean"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveState:
    """What an objective has learnt about its run; plain numbers, kept in checkpoints. None: the objective has no use."""

    taid: TaidState | None = None
    mixing: MixingState | None = None
    anchors: tuple[float, float] | None = None
    """Owner's advantage on teacher and on student prefixes in the first update (DistiLLM-2's adaptive skew)."""

    @classmethod
    def initial(cls, section: ObjectiveSection) -> Self:
        """Before the first update."""
        taid = next((s for s in (section.on_teacher, section.on_student) if isinstance(s, config.Taid)), None)
        return cls(
            taid=None if taid is None else TaidState(t=taid.start),
            mixing=None if section.mixing is None else MixingState(threshold=section.mixing.start),
        )

    def to_record(self) -> dict[str, object]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, object]) -> Self:
        """Inverse of `to_record`."""
        taid, mixing, anchors = (record.get(name) for name in ("taid", "mixing", "anchors"))
        return cls(
            taid=TaidState(**taid) if isinstance(taid, dict) else None,
            mixing=MixingState(**mixing) if isinstance(mixing, dict) else None,
            anchors=(anchors[0], anchors[1]) if isinstance(anchors, list | tuple) else None,
        )

    def after_update(self, section: ObjectiveSection, *, loss: float, progress: float) -> Self:
        """The state after an update of this loss; `progress` is the share done."""
        taid = next((s for s in (section.on_teacher, section.on_student) if isinstance(s, config.Taid)), None)
        if taid is None or self.taid is None:
            return self
        schedule = taid.model_dump(exclude={"type"})
        return replace(self, taid=self.taid.after(loss, progress=progress, **schedule))


def is_adaptive(section: DivergenceSection) -> bool:
    """Whether the skew of each sequence follows DistiLLM-2's curriculum."""
    return isinstance(section, config.SkewedKL | config.SkewedReverseKL) and section.adaptive


def make_divergence(section: DivergenceSection, state: ObjectiveState) -> Divergence:
    """The divergence that a config section names, as it is in this state."""
    match section:
        case config.ForwardKL() | config.CrossEntropy():
            # The cross-entropy is the forward KL to a one-hot target.
            return divergences.SkewedKL(alpha=0.0)
        case config.ReverseKL():
            return divergences.SkewedReverseKL(alpha=0.0, detach_mixture=False)
        case config.Jsd(beta=0.0):
            return divergences.SkewedKL(alpha=0.0)
        case config.Jsd(beta=1.0):
            return divergences.SkewedReverseKL(alpha=0.0, detach_mixture=False)
        case config.Jsd():
            return divergences.GeneralizedJSD(beta=section.beta)
        case config.SkewedKL():
            return divergences.SkewedKL(alpha=section.alpha)
        case config.SkewedReverseKL():
            return divergences.SkewedReverseKL(alpha=section.alpha, detach_mixture=section.detach_mixture)
        case config.AlphaBeta():
            return divergences.AlphaBeta(alpha=section.alpha, beta=section.beta)
        case config.AdaptiveKL():
            return divergences.AdaptiveKL(head_mass=section.head_mass)
        case config.Taid():
            assert state.taid is not None
            return divergences.InterpolatedTarget(t=state.taid.t)
        case config.Amid():
            return divergences.AlphaMixture(**section.model_dump(exclude={"type"}))


def with_adaptive_skew(
    divergence: Divergence,
    advantage: FloatArray,
    layout: RowLayout,
    side: Side,
    state: ObjectiveState,
) -> Divergence | PerSequenceSkew:
    """The skew of each sequence from its owner's advantage, once the first update has set the anchor.

    Args:
        advantage: for each sequence of this side that has rows, exp of the mean log-probability of its tokens under its
            owner minus the same under the other model. [sequences]
    """
    assert isinstance(divergence, divergences.SkewedKL | divergences.SkewedReverseKL)
    if state.anchors is None:
        return divergence
    anchor = state.anchors[0 if side == "teacher" else 1]
    assert isinstance(divergence.alpha, float)
    alpha = adaptive_alpha(torch.from_numpy(advantage), anchor=anchor, base=divergence.alpha)
    lengths = layout.side_lengths(side)
    return PerSequenceSkew(base=divergence, alpha=alpha.repeat_interleave(torch.from_numpy(lengths[lengths > 0])))


def sequence_advantage(owner_logp: FloatArray, other_logp: FloatArray, lengths: np.ndarray) -> FloatArray:
    """exp(mean ln p_owner) - exp(mean ln p_other) of each sequence, from rows in order. [sequences with rows]"""
    lengths = lengths[lengths > 0]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    means = [np.add.reduceat(rows.astype(np.float64), starts) / lengths for rows in (owner_logp, other_logp)]
    advantage: FloatArray = (np.exp(means[0]) - np.exp(means[1])).astype(np.float32)
    return advantage


def row_weights(
    weighting: config.Weighting,
    *,
    validity: Validity | None,
    fused: Collection[FusedRows],
    num_rows: int,
    special_ids: Collection[int],
    ends_step: BoolArray | None = None,
) -> Weights:
    """One weight a row from whatever signal the rule declares that it needs.

    Args:
        fused: the sides in row order.
        ends_step: rows whose trajectory token ends a step, for the rule that asks for it. [N]
    """
    match weighting:
        case config.CompositeWeighting():
            assert ends_step is not None
            parts = (
                row_weights(part, validity=validity, fused=fused, num_rows=num_rows, special_ids=special_ids)
                for part in (weighting.step_end, weighting.mid_step)
            )
            return chosen_weights(ends_step, *parts)
        case config.UniformWeighting():
            return uniform_weights(num_rows)
        case config.TeacherProbWeighting():
            return teacher_prob_weights(
                _joined([r.teacher_prob_of_student_argmax for r in fused]),
                _joined([r.teacher_collision for r in fused]),
                gamma=weighting.gamma,
                clamp=weighting.clamp,
                eps=weighting.eps,
            )
    assert validity is not None
    match weighting:
        case config.RatioWeighting():
            return ratio_weights(validity, special_ids=special_ids, eps=weighting.eps, w_max=weighting.w_max)
        case config.InverseRatioWeighting():
            return inverse_ratio_weights(validity, special_ids=special_ids, eps=weighting.eps, w_max=weighting.w_max)
        case config.StudentScoreWeighting():
            return student_score_weights(validity, special_ids=special_ids)
        case config.DifferenceWeighting():
            return difference_weights(validity, special_ids=special_ids, shifted=weighting.shifted)


def lambdas(section: ObjectiveSection, *, progress: float) -> tuple[float, float]:
    """Strength of the terms on teacher and on student prefixes when this share of the updates is done."""
    factors = gradual_factors(progress=progress) if section.gradual else (1.0, 1.0)
    return section.lambda_teacher * factors[0], section.lambda_student * factors[1]


def row_coefficients(
    layout: RowLayout,
    *,
    lambda_teacher: float,
    lambda_student: float,
    reduction: Reduction,
    num_pairs: int,
    num_teacher_tokens: int,
    num_student_tokens: int,
) -> FloatArray:
    """What w_t d_t of each row is multiplied with, so that the sum over all rows of an update is its loss. [N]

    The counts are over the whole update, all ranks and micro-batches. No denominator contains weights: dividing by
    their sum would undo amplification.

        sequence_mean      lambda / (response length * pairs)
        sum                lambda / pairs                        (eq. 3 of the paper)
        global_token_mean  lambda / response tokens of that side
    """
    strength = np.where(layout.is_teacher, lambda_teacher, lambda_student)
    if reduction == "sequence_mean":
        denominator = layout.sequence_lengths.astype(np.float64) * num_pairs
    elif reduction == "sum":
        denominator = np.full(layout.num_rows, float(num_pairs))
    else:
        denominator = np.where(layout.is_teacher, float(num_teacher_tokens), float(num_student_tokens))
    return (strength / denominator).astype(np.float32)


def _joined(parts: list[torch.Tensor | None]) -> FloatArray:
    tensors = [part for part in parts if part is not None]
    joined: FloatArray = torch.cat(tensors).float().cpu().numpy()
    return joined
