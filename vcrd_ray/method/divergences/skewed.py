"""The skewed KL divergences, and the two plain ones as their limits. See the package for what p, q and z are.

Mixtures and ratios are formed from differences of log-probabilities: no division by a probability, and what a token of
probability zero adds is never nan. `value_and_grad` forms the mixture in another way than `value`, so that each checks
the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vcrd_ray.method.divergences.protocol import Divergence, LogProbs, PerToken

_AS_GOOD_AS_ZERO = -1e30
"""A log-probability whose exponential is zero in every dtype."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SkewedKL(Divergence):
    """D_SKL = KL(p || m), m = alpha p + (1 - alpha) q. alpha = 0 is the forward KL.

    With u = p/m: dD/dz_i = -(1 - alpha) q_i (u_i - sum_j q_j u_j). An alpha for each row is [n, 1] and above 0.
    """

    alpha: float | Float[Tensor, "n 1"]

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, Tensor):
            check_share(alpha=self.alpha)

    def value(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> PerToken:
        return expected_log_ratio(teacher_logp, log_mixture(teacher_logp, student_logp, share=self.alpha))

    def value_and_grad(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> tuple[PerToken, LogProbs]:
        if _is_zero(self.alpha):
            # u = p/q has no bound, but q u = p: the forward KL's gradient is q - p.
            teacher = teacher_logp.exp()
            signal = log_ratio(teacher_logp, student_logp, zero=teacher == 0)
            return (teacher * signal).sum(-1), student_logp.exp().sub_(teacher)
        signal = log_ratio_to_mixture(teacher_logp, student_logp, share=self.alpha)
        value = teacher_logp.exp().mul_(signal).sum(-1)
        ratio, student = signal.exp_(), student_logp.exp()
        mean = (student * ratio).sum(-1, keepdim=True)
        return value, ratio.neg_().add_(mean).mul_(student).mul_(1 - self.alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class SkewedReverseKL(Divergence):
    """D_SRKL = KL(q || m), m = (1 - alpha) p + alpha q. alpha = 0 is the reverse KL.

    With s = ln(q/m) - alpha q/m: dD/dz_i = q_i (s_i - sum_j q_j s_j). With the mixture detached, as DistiLLM-2 does,
    s = ln(q/m). An alpha for each row is [n, 1] and above 0.
    """

    alpha: float | Float[Tensor, "n 1"]
    detach_mixture: bool

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, Tensor):
            check_share(alpha=self.alpha)

    def value(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> PerToken:
        inside = student_logp.detach() if self.detach_mixture else student_logp
        return expected_log_ratio(student_logp, log_mixture(inside, teacher_logp, share=self.alpha))

    def value_and_grad(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> tuple[PerToken, LogProbs]:
        student = student_logp.exp()
        if _is_zero(self.alpha):
            signal = log_ratio(student_logp, teacher_logp, zero=student == 0)
            value = (student * signal).sum(-1)
            # Where p = 0 < q the value is infinite and has no gradient: that token is left out of it.
            signal.nan_to_num_(posinf=0.0)
        else:
            signal = log_ratio_to_mixture(student_logp, teacher_logp, share=self.alpha)
            value = (student * signal).sum(-1)
            if not self.detach_mixture:
                signal.sub_(signal.exp().mul_(self.alpha))
        mean = (student * signal).sum(-1, keepdim=True)
        return value, signal.sub_(mean).mul_(student)


def _is_zero(alpha: float | Tensor) -> bool:
    return not isinstance(alpha, Tensor) and alpha == 0


def check_share(**shares: float) -> None:
    """Refuse a mixture share outside [0, 1]."""
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} {share} is outside [0, 1]")


def log_ratio_to_mixture(own: Tensor, other: Tensor, *, share: float | Tensor) -> Tensor:
    """ln(a / m), m = share a + (1 - share) b, of own = ln a and other = ln b; finite everywhere, at most ln(1 / share).

    As -ln(share + (1 - share) b / a): a sum of positive terms, in which nothing cancels. In one tensor.
    """
    inverse = (other - own).exp_().mul_(1 - share).add_(share)
    # nan: both are zero, as in a padding column. +inf: a = 0, so any finite number will do, because every use of it is
    # multiplied by a; nan_to_num makes it the largest one.
    return inverse.nan_to_num_(nan=1.0).log_().neg_()


def log_ratio(own: Tensor, other: Tensor, *, zero: Tensor) -> Tensor:
    """ln(a / b), and 0 where a is zero. +inf where b alone is zero: the divergences without skew are infinite there."""
    return (own - other).masked_fill_(zero, 0.0)


def expected_log_ratio(own: Tensor, log_mixture: Tensor) -> Tensor:
    """sum_v a ln(a / m) of own = ln a, with 0 ln 0 = 0, differentiable."""
    probability = own.exp()
    return (probability * (own - log_mixture).masked_fill(probability == 0, 0.0)).sum(-1)


def log_mixture(first: Tensor, second: Tensor, *, share: float | Tensor) -> Tensor:
    """ln( share e^first + (1 - share) e^second ), differentiable."""
    if not isinstance(share, Tensor):
        if share == 0:
            return second
        if share == 1:
            return first
        share = torch.tensor(share, dtype=first.dtype, device=first.device)
    # logaddexp has no derivative where both are -inf; a number that is as good as -inf has one, and clamp passes it 0.
    first, second = first.clamp_min(_AS_GOOD_AS_ZERO), second.clamp_min(_AS_GOOD_AS_ZERO)
    return torch.logaddexp(first + share.log(), second + torch.log1p(-share))
