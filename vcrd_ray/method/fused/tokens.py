"""What the fused loss says of tokens. The same type for one chunk, for all chunks, and for what the kernel gives."""

from __future__ import annotations

from dataclasses import dataclass, fields

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedTokens:
    """All [n]; only `divergence` ever carries a gradient."""

    divergence: Float[Tensor, " n"]
    """In nats."""
    student_proposal: Int[Tensor, " n"] | None
    """Sampled from the student's distribution; None where no uniform numbers were given."""
    teacher_prob_of_student_argmax: Float[Tensor, " n"] | None
    """p(argmax q); None unless a top-k was asked for."""
    teacher_collision: Float[Tensor, " n"] | None
    """Sum of p^2 over the teacher's top-k tokens; None unless a top-k was asked for."""

    def fill(self, span: slice, chunk: FusedTokens) -> None:
        """Take over what a chunk says of its tokens."""
        for name in (field.name for field in fields(self)):
            buffer = getattr(self, name)
            if buffer is not None:
                buffer[span] = getattr(chunk, name)
