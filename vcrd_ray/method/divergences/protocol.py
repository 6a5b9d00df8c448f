"""What a divergence is to the rest of the program."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

LogProbs = Float[Tensor, "n v"]
"""Log-probabilities of the vocabulary at each token; gradients by logits have the same shape."""
PerToken = Float[Tensor, " n"]


@runtime_checkable
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


def logit_gradient(sensitivity: Float[Tensor, "n v"], logp: Float[Tensor, "n v"]) -> Float[Tensor, "n v"]:
    """dD/dz_i = e_i - q_i sum_j e_j of e_i = q_i dD/dq_i and ln q."""
    return sensitivity - logp.exp() * sensitivity.sum(-1, keepdim=True)
