"""What an objective learns about its run while it is trained on, and DistiLLM-2's adaptive skew, which follows from it.

Pure; knows no models and no files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from vcrd_ray.config import objective
from vcrd_ray.config.objective import DivergenceSection, ObjectiveSection
from vcrd_ray.method import divergences
from vcrd_ray.method.curricula import MixingState, TaidState, adaptive_alpha
from vcrd_ray.method.divergences import Divergence
from vcrd_ray.method.fused import PerSequenceSkew
from vcrd_ray.types import FloatArray, Side, TokenLayout


@dataclass(frozen=True, kw_only=True)
class ObjectiveState:
    """What an objective has learnt about its run; plain numbers, kept in checkpoints. None: the objective has no use."""

    taid: TaidState | None = None
    mixing: MixingState | None = None
    anchors: tuple[float, float] | None = None
    """Owner's advantage on teacher and on student prefixes in the first update (DistiLLM-2's adaptive skew)."""

    @classmethod
    def initial(cls, section: ObjectiveSection) -> ObjectiveState:
        """Before the first update."""
        taid = next((s for s in (section.on_teacher, section.on_student) if isinstance(s, objective.Taid)), None)
        return cls(
            taid=None if taid is None else TaidState(t=taid.start),
            mixing=None if section.mixing is None else MixingState(threshold=section.mixing.start),
        )

    def to_record(self) -> dict[str, object]:
        """As JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, object]) -> ObjectiveState:
        """Inverse of `to_record`."""
        taid, mixing, anchors = (record.get(name) for name in ("taid", "mixing", "anchors"))
        return cls(
            taid=TaidState(**taid) if isinstance(taid, dict) else None,
            mixing=MixingState(**mixing) if isinstance(mixing, dict) else None,
            anchors=(anchors[0], anchors[1]) if isinstance(anchors, list | tuple) else None,
        )

    def after_update(self, section: ObjectiveSection, *, loss: float, progress: float) -> ObjectiveState:
        """The state after an update of this loss; `progress` is the share done."""
        taid = next((s for s in (section.on_teacher, section.on_student) if isinstance(s, objective.Taid)), None)
        if taid is None or self.taid is None:
            return self
        schedule = taid.model_dump(exclude={"type"})
        return replace(self, taid=self.taid.after(loss, progress=progress, **schedule))


def is_adaptive(section: DivergenceSection) -> bool:
    """Whether the skew of each sequence follows DistiLLM-2's curriculum."""
    return isinstance(section, objective.SkewedKL | objective.SkewedReverseKL) and section.adaptive


def with_adaptive_skew(
    divergence: Divergence,
    advantage: FloatArray,
    layout: TokenLayout,
    side: Side,
    state: ObjectiveState,
) -> Divergence | PerSequenceSkew:
    """The skew of each sequence from its owner's advantage, once the first update has set the anchor.

    Args:
        advantage: for each sequence of this side that takes part, exp of the mean log-probability of its tokens under its
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
    """exp(mean ln p_owner) - exp(mean ln p_other) of each sequence, from tokens in order. [sequences that take part]"""
    lengths = lengths[lengths > 0]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    means = [np.add.reduceat(logp.astype(np.float64), starts) / lengths for logp in (owner_logp, other_logp)]
    advantage: FloatArray = (np.exp(means[0]) - np.exp(means[1])).astype(np.float32)
    return advantage
