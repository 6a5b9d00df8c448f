"""Sections of the configuration -> divergences."""

from __future__ import annotations

from vcrd_ray import config
from vcrd_ray.config import DivergenceSection
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
        case config.ForwardKL() | config.CrossEntropy():
            # The cross-entropy is the forward KL to a one-hot target.
            return SkewedKL(alpha=0.0)
        case config.ReverseKL():
            return SkewedReverseKL(alpha=0.0, detach_mixture=False)
        case config.Jsd(beta=0.0):
            return SkewedKL(alpha=0.0)
        case config.Jsd(beta=1.0):
            return SkewedReverseKL(alpha=0.0, detach_mixture=False)
        case config.Jsd():
            return GeneralizedJSD(beta=section.beta)
        case config.SkewedKL():
            return SkewedKL(alpha=section.alpha)
        case config.SkewedReverseKL():
            return SkewedReverseKL(alpha=section.alpha, detach_mixture=section.detach_mixture)
        case config.AlphaBeta():
            return AlphaBeta(alpha=section.alpha, beta=section.beta)
        case config.AdaptiveKL():
            return AdaptiveKL(head_mass=section.head_mass)
        case config.Taid():
            assert taid_t is not None
            return InterpolatedTarget(t=taid_t)
        case config.Amid():
            return AlphaMixture(**section.model_dump(exclude={"type"}))
