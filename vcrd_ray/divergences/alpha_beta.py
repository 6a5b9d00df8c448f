"""The alpha-beta divergence of ABKD, on every branch of its plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vcrd_ray.divergences.protocol import logit_gradient


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaBeta:
    """D = -1/(a b) sum [ p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b) ], and its limits where a, b or a + b is 0.

    (1, 0) is the forward KL, (0, 1) the reverse KL, (0.5, 0.5) is 2 sum (sqrt p - sqrt q)^2. The limits are those of the
    formula, divided by a^2 or b^2; released ABKD code divides by a or b, which differs wherever the other exponent is
    not 1. Where a or b is 0 or below, tokens to which one side gives no probability may make D infinite; a token without
    probability on either side counts for nothing.
    """

    alpha: float
    beta: float

    def value(self, *, teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
        """See `Divergence`."""
        return alpha_beta(teacher_logp, student_logp, alpha=self.alpha, beta=self.beta).sum(-1)

    def value_and_grad(self, *, teacher_logp: Tensor, student_logp: Tensor) -> tuple[Tensor, Tensor]:
        """See `Divergence`."""
        value = alpha_beta(teacher_logp, student_logp, alpha=self.alpha, beta=self.beta).sum(-1)
        sensitivity = alpha_beta_sensitivity(teacher_logp, student_logp, alpha=self.alpha, beta=self.beta)
        return value, logit_gradient(sensitivity, student_logp)


def alpha_beta(x: Tensor, y: Tensor, *, alpha: float, beta: float) -> Tensor:
    """What each token adds to D(e^x, e^y); differentiable. Same shape as x."""
    both_zero = (x == -torch.inf) & (y == -torch.inf)
    # A stand-in, because a masked infinity would still make the derivative nan.
    x, y = x.masked_fill(both_zero, 0.0), y.masked_fill(both_zero, 0.0)
    total = alpha + beta
    if alpha != 0 and beta != 0 and total != 0:
        terms = (
            _power(x, y, alpha, beta) - alpha / total * _power(x, y, total, 0) - beta / total * _power(x, y, 0, total)
        )
        terms = -terms / (alpha * beta)
    elif alpha != 0 and beta == 0:
        terms = (_power(x, y, alpha, 0) * _finite(alpha * (x - y), x) - _power(x, y, alpha, 0)) / alpha**2
        terms = terms + _power(x, y, 0, alpha) / alpha**2
    elif alpha == 0 and beta != 0:
        terms = (_power(x, y, 0, beta) * _finite(beta * (y - x), y) - _power(x, y, 0, beta)) / beta**2
        terms = terms + _power(x, y, beta, 0) / beta**2
    elif alpha != 0:  # beta = -alpha
        terms = (alpha * (y - x) + _power(x, y, alpha, -alpha) - 1) / alpha**2
    else:
        terms = 0.5 * (x - y) ** 2
    return terms.masked_fill(both_zero, 0.0)


def alpha_beta_sensitivity(x: Tensor, y: Tensor, *, alpha: float, beta: float) -> Tensor:
    """y_i dD/dy_i at D(e^x, e^y): (y^(a+b) - x^a y^b) / a, and its limit y^b ln(y/x) at a = 0."""
    if alpha != 0:
        terms = (_power(x, y, 0, alpha + beta) - _power(x, y, alpha, beta)) / alpha
    else:
        terms = _power(x, y, 0, beta) * _finite(y - x, y)
    return terms.masked_fill((x == -torch.inf) & (y == -torch.inf), 0.0)


def _power(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    """e^(a x + b y), with 0^0 = 1."""
    exponent = torch.zeros_like(x)
    if a != 0:
        exponent = exponent + a * x
    if b != 0:
        exponent = exponent + b * y
    return exponent.exp()


def _finite(log_ratio: Tensor, own: Tensor) -> Tensor:
    """The log-ratio, and 0 where the probability that it is multiplied with is 0."""
    return log_ratio.masked_fill(own == -torch.inf, 0.0)
