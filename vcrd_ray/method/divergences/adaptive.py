"""The adaptive KL divergence (AKL): forward and reverse KL, mixed by where the distributions differ."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vcrd_ray.method.divergences.protocol import Divergence, LogProbs, PerToken
from vcrd_ray.method.divergences.skewed import SkewedKL, SkewedReverseKL

_FORWARD = SkewedKL(alpha=0)
_REVERSE = SkewedReverseKL(alpha=0, detach_mixture=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptiveKL(Divergence):
    """D = g_h/(g_h + g_t) KL(p || q) + g_t/(g_h + g_t) KL(q || p), g the sum of |p - q| over head and tail.

    The head is the teacher's largest tokens up to a cumulative probability of `head_mass`, the first one always. The
    shares are constants of the derivative; a divergence whose share is 0 counts for nothing, infinite or not.
    """

    head_mass: float

    def __post_init__(self) -> None:
        if not 0 < self.head_mass < 1:
            raise ValueError(f"head_mass {self.head_mass} is outside (0, 1); at 1 it is the forward KL")

    def value(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> PerToken:
        head = self.head_share(teacher_logp=teacher_logp, student_logp=student_logp)
        forward = _FORWARD.value(teacher_logp=teacher_logp, student_logp=student_logp)
        reverse = _REVERSE.value(teacher_logp=teacher_logp, student_logp=student_logp)
        return _mixed(head, forward, reverse)

    def value_and_grad(self, *, teacher_logp: LogProbs, student_logp: LogProbs) -> tuple[PerToken, LogProbs]:
        head = self.head_share(teacher_logp=teacher_logp, student_logp=student_logp)
        forward, gradient = _FORWARD.value_and_grad(teacher_logp=teacher_logp, student_logp=student_logp)
        reverse, other = _REVERSE.value_and_grad(teacher_logp=teacher_logp, student_logp=student_logp)
        gradient.mul_(head[:, None]).add_(other.mul_((1 - head)[:, None]))
        return _mixed(head, forward, reverse), gradient

    @torch.no_grad()
    def head_share(
        self, *, teacher_logp: Float[Tensor, "n v"], student_logp: Float[Tensor, "n v"]
    ) -> Float[Tensor, " n"]:
        """The share of the forward KL; one half where the distributions are equal. [n]"""
        teacher, order = teacher_logp.exp().sort(dim=-1, descending=True)
        gap = (teacher - student_logp.exp().gather(-1, order)).abs_()
        in_head = teacher.cumsum(-1) <= self.head_mass
        in_head[:, 0] = True
        head, whole = (gap * in_head).sum(-1), gap.sum(-1)
        return torch.where(whole > 0, head / whole, 0.5)


def _mixed(head: Tensor, forward: Tensor, reverse: Tensor) -> Tensor:
    return head * forward.masked_fill(head == 0, 0.0) + (1 - head) * reverse.masked_fill(head == 1, 0.0)
