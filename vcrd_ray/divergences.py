"""Divergences between next-token distributions: values, and gradients with respect to the student's logits.

p is the teacher, q = softmax(z) the student. Everything is in log space: no division by a probability, and a token of
probability zero under either model adds nothing. Knows nothing of weights, hidden states or reductions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


class Divergence(Protocol):
    """One divergence. Rows are independent; arithmetic is done in the dtype given (float32 or float64)."""

    def value(self, *, teacher_logp: Float[Tensor, "n v"], student_logp: Float[Tensor, "n v"]) -> Float[Tensor, " n"]:
        """The divergence of each row in nats, written so that autograd can differentiate it: the dense reference."""
        ...

    def value_and_grad(
        self, *, teacher_logp: Float[Tensor, "n v"], student_logp: Float[Tensor, "n v"]
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n v"]]:
        """The divergence of each row and its gradient with respect to the student's logits, in closed form."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class SkewedKL:
    """D_SKL = KL(p || m), m = alpha p + (1 - alpha) q. alpha = 0 is the forward KL.

    With u = p/m: dD/dz_i = -(1 - alpha) q_i (u_i - sum_j q_j u_j).
    """

    alpha: float

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def value(self, *, teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
        """See `Divergence`."""
        return _expected(teacher_logp, teacher_logp - _log_mixture(teacher_logp, student_logp, self.alpha))

    def value_and_grad(self, *, teacher_logp: Tensor, student_logp: Tensor) -> tuple[Tensor, Tensor]:
        """See `Divergence`."""
        log_ratio = _finite(teacher_logp - _log_mixture(teacher_logp, student_logp, self.alpha))
        value = (teacher_logp.exp() * log_ratio).sum(-1)
        if self.alpha == 0:
            # u = p/q has no bound, but q u = p: the forward KL's gradient is q - p.
            return value, student_logp.exp() - teacher_logp.exp()
        student = student_logp.exp()
        # p/m <= 1/alpha; where p = 0 it is 0, which exp(0) of the cleaned ratio would miss.
        ratio = log_ratio.exp_() * (teacher_logp > -math.inf)
        mean = (student * ratio).sum(-1, keepdim=True)
        return value, student.mul_(mean.sub(ratio)).mul_(1 - self.alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkewedReverseKL:
    """D_SRKL = KL(q || m), m = (1 - alpha) p + alpha q. alpha = 0 is the reverse KL.

    With s = ln(q/m) - alpha q/m: dD/dz_i = q_i (s_i - sum_j q_j s_j). With the mixture detached, as DistiLLM-2 does,
    s = ln(q/m).
    """

    alpha: float
    detach_mixture: bool

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)

    def value(self, *, teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
        """See `Divergence`."""
        inside = student_logp.detach() if self.detach_mixture else student_logp
        return _expected(student_logp, student_logp - _log_mixture(inside, teacher_logp, self.alpha))

    def value_and_grad(self, *, teacher_logp: Tensor, student_logp: Tensor) -> tuple[Tensor, Tensor]:
        """See `Divergence`."""
        signal = _finite(student_logp - _log_mixture(student_logp, teacher_logp, self.alpha))
        student = student_logp.exp()
        value = (student * signal).sum(-1)
        if not self.detach_mixture and self.alpha > 0:
            # q/m <= 1/alpha. At q = 0 the factor q of the gradient makes the term vanish whatever stands here.
            signal = signal - self.alpha * signal.exp()
        mean = (student * signal).sum(-1, keepdim=True)
        return value, student.mul_(signal.sub_(mean))


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} is outside [0, 1]")


def _log_mixture(first: Tensor, second: Tensor, share: float) -> Tensor:
    """ln( share * exp(first) + (1 - share) * exp(second) )"""
    if share == 0:
        return second
    if share == 1:
        return first
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def _finite(log_ratio: Tensor) -> Tensor:
    """-inf - -inf stands where the mixture is zero, and -inf where the numerator is: both are terms with factor zero.

    +inf stays: it is the true value of a divergence without skew where the other model gives no probability.
    """
    return log_ratio.masked_fill_(log_ratio.isnan() | (log_ratio == -math.inf), 0.0)


def _expected(logp: Tensor, log_ratio: Tensor) -> Tensor:
    """sum_v exp(logp) * log_ratio with 0 * anything = 0, differentiable."""
    zero = logp == -math.inf
    return (logp.exp() * log_ratio.masked_fill(zero, 0.0)).masked_fill(zero, 0.0).sum(-1)
