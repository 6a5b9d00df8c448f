"""How a teacher's distribution is given to the fused loss, and a divergence that differs from token to token."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from vcrd_ray.method.divergences import Divergence, SkewedKL, SkewedReverseKL


@dataclass(frozen=True, kw_only=True, slots=True)
class HiddenTeacher:
    """The teacher's distribution, exactly: softmax(hidden head^T) over the first vocab_size rows of the head."""

    hidden: Float[Tensor, "n d"]
    head: Float[Tensor, "v d"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitsTeacher:
    """The teacher's distribution, exactly, from logits; columns at or beyond vocab_size are left out."""

    logits: Float[Tensor, "n v"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TopKTeacher:
    """Some tokens of each position with their log-probabilities; all others count as one token, the tail.

    A KL-type divergence of the lumped distributions is never larger than that of the full ones: a biased signal. Divergences
    that divide by the teacher's probability may be infinite where rounding leaves the tail none. With one token of
    log-probability 0 it is exact and is a one-hot target, for which the forward KL is the cross-entropy.
    """

    ids: Int[Tensor, "n k"]
    logp: Float[Tensor, "n k"]


TeacherDistribution = HiddenTeacher | LogitsTeacher | TopKTeacher


@dataclass(frozen=True, kw_only=True, slots=True)
class PerSequenceSkew:
    """A skewed divergence whose alpha differs from token to token."""

    base: SkewedKL | SkewedReverseKL
    alpha: Float[Tensor, " n"]

    def of_tokens(self, span: slice) -> Divergence:
        """The divergence of a chunk."""
        return dataclasses.replace(self.base, alpha=self.alpha[span, None])
