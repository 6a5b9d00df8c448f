"""Divergences between next-token distributions: values, and gradients with respect to the student's logits.

p is the teacher, q = softmax(z) the student. Each has a value that autograd can differentiate (the dense reference) and
a closed form of value and gradient (what the fused loss uses); tests hold one against the other. They know nothing of
weights, hidden states or reductions.

A derivative is written through e_i = q_i dD/dq_i: then dD/dz_i = e_i - q_i sum_j e_j.
"""

from __future__ import annotations

from vcrd_ray.method.divergences.adaptive import AdaptiveKL
from vcrd_ray.method.divergences.alpha_beta import AlphaBeta
from vcrd_ray.method.divergences.interpolated import AlphaMixture, InterpolatedTarget
from vcrd_ray.method.divergences.jensen_shannon import GeneralizedJSD
from vcrd_ray.method.divergences.named import make_divergence
from vcrd_ray.method.divergences.protocol import Divergence
from vcrd_ray.method.divergences.skewed import SkewedKL, SkewedReverseKL

__all__ = [
    "AdaptiveKL",
    "AlphaBeta",
    "AlphaMixture",
    "Divergence",
    "GeneralizedJSD",
    "InterpolatedTarget",
    "SkewedKL",
    "SkewedReverseKL",
    "make_divergence",
]
