"""What an update minimises (eq. 3 of the paper): the sum over tokens of coefficient x weight x divergence.

Knows no models, no judges and no Ray; denominators and weights are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vcrd_ray.config.objective import ObjectiveSection
from vcrd_ray.method.curricula import gradual_factors
from vcrd_ray.types import FloatArray, TokenLayout

Reduction = Literal["sequence_mean", "sum", "global_token_mean"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Denominators:
    """Counts over a whole update, all ranks and micro-batches. None contains weights: dividing by their sum would undo
    amplification.
    """

    pairs: int
    teacher_tokens: int
    """Response tokens on teacher prefixes; read by `global_token_mean` alone."""
    student_tokens: int
    """The same on student prefixes."""


def distillation_loss(
    token_divergences: Float[Tensor, " n"],
    *,
    weights: Float[np.ndarray, " n"],
    coefficients: Float[np.ndarray, " n"],
) -> Float[Tensor, ""]:
    """This micro-batch's share of the update's loss: sum_t coefficient_t w_t d_t (eq. 3).

    Weights and coefficients are constants: they scale how strongly a token follows the teacher, never where to.

    Args:
        token_divergences: skewed KL of each token to the teacher, in nats; the only part with a gradient. [N]
        weights: w_t of the weighting rule. [N]
        coefficients: lambda over the denominator, from `token_coefficients`. [N]
    """
    factors = torch.from_numpy(coefficients * weights).to(token_divergences.device)
    return (factors * token_divergences).sum()


def lambdas(section: ObjectiveSection, *, progress: float) -> tuple[float, float]:
    """Strength of the terms on teacher and on student prefixes when this share of the updates is done."""
    factors = gradual_factors(progress=progress) if section.gradual else (1.0, 1.0)
    return section.lambda_teacher * factors[0], section.lambda_student * factors[1]


def token_coefficients(
    layout: TokenLayout, *, lambdas: tuple[float, float], reduction: Reduction, denominators: Denominators
) -> FloatArray:
    """Strength of a token's side over its denominator, so that the sum over all tokens of an update is its loss. [N]

        sequence_mean      lambda / (response length * pairs)
        sum                lambda / pairs                        (eq. 3 of the paper)
        global_token_mean  lambda / response tokens of that side

    Args:
        lambdas: of the terms on teacher and on student prefixes.
    """
    strength = np.where(layout.is_teacher, *lambdas)
    if reduction == "sequence_mean":
        denominator = layout.sequence_lengths.astype(np.float64) * denominators.pairs
    elif reduction == "sum":
        denominator = np.full(layout.num_tokens, float(denominators.pairs))
    else:
        denominator = np.where(
            layout.is_teacher, float(denominators.teacher_tokens), float(denominators.student_tokens)
        )
    return (strength / denominator).astype(np.float32)
