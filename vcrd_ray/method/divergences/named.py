"""Sections of the configuration -> divergences."""

from __future__ import annotations

from vcrd_ray.config import objective
from vcrd_ray.config.objective import DivergenceSection
from vcrd_ray.method.divergences.adaptive import AdaptiveKL
from vcrd_ray.method.divergences.alpha_beta import AlphaBeta
from vcrd_ray.method.divergences.interpolated import AlphaMixture, InterpolatedTarget
from vcrd_ray.method.divergences.jensen_shannon import GeneralizedJSD
from vcrd_ray.method.divergences.protocol import Divergence
from vcrd_ray.method.divergences.skewed import SkewedKL, SkewedReverseKL


def make_divergence(section: DivergenceSection, *, taid_t: float | None = None) -> Divergence:
    """The divergence that a config section names.

    Args:
        taid_t: the teacher's share in TAID's target now; only `taid` needs it.
    """
    match section:
        case objective.ForwardKL() | objective.CrossEntropy():
            # The cross-entropy is the forward KL to a one-hot target.
            return SkewedKL(alpha=0.0)
        case objective.ReverseKL():
            return SkewedReverseKL(alpha=0.0, detach_mixture=False)
        case objective.Jsd(beta=0.0):
            return SkewedKL(alpha=0.0)
        case objective.Jsd(beta=1.0):
            return SkewedReverseKL(alpha=0.0, detach_mixture=False)
        case objective.Jsd():
            return GeneralizedJSD(beta=section.beta)
        case objective.SkewedKL():
            return SkewedKL(alpha=section.alpha)
        case objective.SkewedReverseKL():
            return SkewedReverseKL(alpha=section.alpha, detach_mixture=section.detach_mixture)
        case objective.AlphaBeta():
            return AlphaBeta(alpha=section.alpha, beta=section.beta)
        case objective.AdaptiveKL():
            return AdaptiveKL(head_mass=section.head_mass)
        case objective.Taid():
            assert taid_t is not None
            return InterpolatedTarget(t=taid_t)
        case objective.Amid():
            return AlphaMixture(**section.model_dump(exclude={"type"}))
