"""Divergences to a distribution between the two: TAID's target and AMiD's mixtures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vcrd_ray.method.divergences.alpha_beta import alpha_beta, alpha_beta_sensitivity, check_exponents
from vcrd_ray.method.divergences.protocol import Divergence, LogProbs, PerToken, logit_gradient
from vcrd_ray.method.divergences.skewed import check_share, expected_log_ratio


@dataclass(frozen=True, kw_only=True, slots=True)
class InterpolatedTarget(Divergence):
    """TAID: the cross-entropy of q against p_t = softmax((1 - t) z + t z_teacher), p_t a constant.

    dD/dz = q - p_t. A cross-entropy, not a KL divergence, because the schedule of t is defined by how it falls: at q = p_t
    it is the entropy of p_t, not 0.
    """

    t: float

    def __post_init__(self) -> None:
        check_share(t=self.t)

    def value(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> PerToken:
        target = self.target(teacher_logp=teacher_logp, student_logp=student_logp).exp()
        return -(target * student_logp.masked_fill(target == 0, 0.0)).sum(-1)

    def value_and_grad(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> tuple[PerToken, LogProbs]:
        target = self.target(teacher_logp=teacher_logp, student_logp=student_logp).exp_()
        value = -(target * student_logp.masked_fill(target == 0, 0.0)).sum(-1)
        return value, student_logp.exp().sub_(target)

    @torch.no_grad()
    def target(self, *, teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
        """ln p_t. [n, v]"""
        if self.t in (0.0, 1.0):
            return (teacher_logp if self.t else student_logp).clone()
        return torch.log_softmax(self.t * teacher_logp + (1 - self.t) * student_logp, dim=-1)


@dataclass(frozen=True, kw_only=True, slots=True)
class AlphaMixture(Divergence):
    """AMiD: a divergence between one side and r, proportional to [share p^c + (1 - share) q^c]^(1/c), c = (1 - alpha)/2.

    alpha = -1 is the arithmetic mixture of the skewed divergences, alpha = 1 (c = 0) the geometric one. `order` names the
    two arguments: pr is D(p || r). The gradient goes through r, where d ln r_i / d ln q_i before normalisation is
    k_i = (1 - share) q_i^c / (share p_i^c + (1 - share) q_i^c).
    """

    alpha: float
    share: float
    order: Literal["pr", "qr", "rp", "rq"]
    kind: Literal["kl", "alpha_beta"]
    exponents: tuple[float, float] = (0.2, 0.7)
    """(a, b) of the alpha-beta divergence, where `kind` names it."""

    def __post_init__(self) -> None:
        check_share(share=self.share)
        if self.alpha > 1:
            raise ValueError(f"alpha {self.alpha} is above 1, where a token of either zero makes the mixture zero")
        check_exponents(*self.exponents)

    def value(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> PerToken:
        names = {"p": teacher_logp, "q": student_logp}
        names["r"] = self.log_mixture(teacher_logp=teacher_logp, student_logp=student_logp)
        x, y = (names[name] for name in self.order)
        if self.kind == "kl":
            return expected_log_ratio(x, y)
        return alpha_beta(x, y, alpha=self.exponents[0], beta=self.exponents[1]).sum(-1)

    def value_and_grad(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> tuple[PerToken, LogProbs]:
        mixture = self.log_mixture(teacher_logp=teacher_logp, student_logp=student_logp)
        names = {"p": teacher_logp, "q": student_logp, "r": mixture}
        x, y = (names[name] for name in self.order)
        if self.kind == "kl":
            probability = x.exp()
            log_ratio = (x - y).masked_fill(probability == 0, 0.0)
            value = (probability * log_ratio).sum(-1)
            # Where y = 0 < x the value is infinite and has no gradient: that token is left out of it.
            by_argument = (probability * (log_ratio.nan_to_num(posinf=0.0) + 1), -probability)
        else:
            a, b = self.exponents
            value = alpha_beta(x, y, alpha=a, beta=b).sum(-1)
            # D_ab(x, y) = D_ba(y, x).
            by_argument = (
                alpha_beta_sensitivity(y, x, alpha=b, beta=a),
                alpha_beta_sensitivity(x, y, alpha=a, beta=b),
            )
        sensitivity = dict(zip(self.order, by_argument, strict=True))
        through_r = logit_gradient(sensitivity["r"], mixture)  # r is normalised as a softmax is
        total = through_r * self._share_of_student(teacher_logp, student_logp)
        if "q" in sensitivity:
            total += sensitivity["q"]
        return value, logit_gradient(total, student_logp)

    def log_mixture(self, *, teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
        """ln r. [n, v]"""
        if self.share in (0.0, 1.0):
            return teacher_logp if self.share else student_logp
        power = (1 - self.alpha) / 2
        if power == 0:
            unnormalised = self.share * teacher_logp + (1 - self.share) * student_logp
        else:
            floor = -1e30 / max(power, 1.0)  # logaddexp has no derivative where both are -inf
            teacher, student = teacher_logp.clamp_min(floor) * power, student_logp.clamp_min(floor) * power
            unnormalised = torch.logaddexp(teacher + math.log(self.share), student + math.log1p(-self.share)) / power
        return torch.log_softmax(unnormalised, dim=-1)

    def _share_of_student(self, teacher_logp: Tensor, student_logp: Tensor) -> Tensor:
        power = (1 - self.alpha) / 2
        if power == 0 or self.share in (0.0, 1.0):
            return torch.full_like(student_logp, 1 - self.share)
        odds = math.log1p(-self.share) - math.log(self.share) + power * (student_logp - teacher_logp)
        return odds.nan_to_num(nan=0.0).sigmoid()  # nan: zero on both sides
