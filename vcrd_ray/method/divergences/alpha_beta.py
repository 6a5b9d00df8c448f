"""The alpha-beta divergence of ABKD, on every branch of its plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vcrd_ray.method.divergences.protocol import Divergence, LogProbs, PerToken, logit_gradient

_SMALLEST_SUM = 0.01
"""Of a + b, where it is not 0: the formula divides by it, so a smaller one would leave mostly rounding errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaBeta(Divergence):
    """D = -1/(a b) sum [ p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b) ], and its limits where a, b or a + b is 0.

    (1, 0) is the forward KL, (0, 1) the reverse KL, (0.5, 0.5) is 2 sum (sqrt p - sqrt q)^2. The limits are those of the
    formula, divided by a^2 or b^2; released ABKD code divides by a or b, which differs wherever the other exponent is
    not 1. Where a or b is 0 or below, tokens to which one side gives no probability may make D infinite: these are left out
    of the gradient. A token without probability on either side counts for nothing.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        check_exponents(self.alpha, self.beta)

    def value(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> PerToken:
        return alpha_beta(teacher_logp, student_logp, alpha=self.alpha, beta=self.beta).sum(-1)

    def value_and_grad(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> tuple[PerToken, LogProbs]:
        value = alpha_beta(teacher_logp, student_logp, alpha=self.alpha, beta=self.beta).sum(-1)
        sensitivity = alpha_beta_sensitivity(teacher_logp, student_logp, alpha=self.alpha, beta=self.beta)
        return value, logit_gradient(sensitivity, student_logp)


def check_exponents(alpha: float, beta: float) -> None:
    """Refuse exponents that are all but opposite."""
    if 0 < abs(alpha + beta) < _SMALLEST_SUM:
        raise ValueError(
            f"exponents {alpha} and {beta} of the alpha-beta divergence add up to {alpha + beta:g}; make it exactly 0, or at"
            f" least {_SMALLEST_SUM}"
        )


def alpha_beta(x: Tensor, y: Tensor, *, alpha: float, beta: float) -> Tensor:
    """What each token adds to D(e^x, e^y); differentiable. Same shape as x."""
    both_zero = (x == -torch.inf) & (y == -torch.inf)
    # A stand-in, because a masked infinity would still make the derivative nan.
    x, y = x.masked_fill(both_zero, 0.0), y.masked_fill(both_zero, 0.0)
    total = alpha + beta
    if alpha != 0 and beta != 0 and total != 0:
        # As two differences, (p^(a+b) - p^a q^b) / b and (q^(a+b) - p^a q^b) / a: each is exact for a small exponent too.
        both = alpha * x + beta * y
        terms = _difference(total * x, both, gap=beta * (x - y)) / beta
        terms = (terms + _difference(total * y, both, gap=alpha * (y - x)) / alpha) / total
        terms = terms.masked_fill(
            both == torch.inf, torch.inf
        )  # with exponents of either sign; else it would be inf - inf
    elif alpha != 0 and beta == 0:
        terms = (_power(x, y, alpha, 0) * _finite(alpha * (x - y), x) - _power(x, y, alpha, 0)) / alpha**2
        terms = terms + _power(x, y, 0, alpha) / alpha**2
    elif alpha == 0 and beta != 0:
        terms = (_power(x, y, 0, beta) * _finite(beta * (y - x), y) - _power(x, y, 0, beta)) / beta**2
        terms = terms + _power(x, y, beta, 0) / beta**2
    elif alpha != 0:  # beta = -alpha
        scaled = alpha * (x - y)
        terms = (torch.expm1(scaled) - scaled).masked_fill(scaled.isinf(), torch.inf) / alpha**2
    else:
        terms = 0.5 * (x - y) ** 2
    return terms.masked_fill(both_zero, 0.0)


def alpha_beta_sensitivity(x: Tensor, y: Tensor, *, alpha: float, beta: float) -> Tensor:
    """y_i dD/dy_i at D(e^x, e^y): (y^(a+b) - x^a y^b) / a, and its limit y^b ln(y/x) at a = 0; 0 where it is infinite."""
    if alpha != 0:
        own, both = _exponent(x, y, 0, alpha + beta), _exponent(x, y, alpha, beta)
        terms = _difference(own, both, gap=alpha * (y - x)) / alpha
    else:
        terms = _power(x, y, 0, beta) * _finite(y - x, y)
    infinite = ~terms.isfinite()  # nan: no probability on either side
    return terms.masked_fill_(infinite, 0.0)


def _power(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    """e^(a x + b y), with 0^0 = 1."""
    return _exponent(x, y, a, b).exp()


def _exponent(x: Tensor, y: Tensor, a: float, b: float) -> Tensor:
    if a == 0 and b == 0:
        return torch.zeros_like(x)
    if b == 0:
        return a * x
    return a * x + b * y if a != 0 else b * y


def _difference(first: Tensor, second: Tensor, *, gap: Tensor) -> Tensor:
    """e^first - e^second of exponents that differ by `gap`, which is given because it would be lost in them."""
    larger = first.exp() * -torch.expm1(-gap.clamp_min(0.0))
    return torch.where(gap >= 0, larger, second.exp() * torch.expm1(gap.clamp_max(0.0)))


def _finite(log_ratio: Tensor, own: Tensor) -> Tensor:
    """The log-ratio, and 0 where the probability that it is multiplied with is 0."""
    return log_ratio.masked_fill(own == -torch.inf, 0.0)
