"""Quantities of an objective that change while it is trained on. Pure numbers; knows no tensors but alpha's, no files.

Each curriculum is a small frozen state and a function to the next one, so that a checkpoint can hold it as numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

ALPHA_FLOOR = 0.01
"""Smallest skew of DistiLLM-2's curriculum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaidState:
    """TAID's share of the teacher. t_next = min(end, max(t_linear, t + rate sigmoid(m) (1 - t))).

    m is a running mean of the loss's relative fall, m_next = momentum m + (1 - momentum) (L_prev - L) / (L_prev + 1e-15).
    """

    t: float
    change: float = 0.0
    previous_loss: float = math.nan

    def after(
        self, loss: float, *, progress: float, start: float, end: float, rate: float, momentum: float
    ) -> TaidState:
        """The state after an update of this loss; `progress` is the share of all updates done."""
        fall = 0.0 if math.isnan(self.previous_loss) else (self.previous_loss - loss) / (self.previous_loss + 1e-15)
        change = momentum * self.change + (1 - momentum) * fall
        stepped = self.t + rate / (1 + math.exp(-change)) * (1 - self.t)
        linear = start + (end - start) * progress
        return replace(self, t=min(end, max(linear, stepped)), change=change, previous_loss=loss)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixingState:
    """DistiLLM's threshold: the probability that a pair's response is the student's own.

    There a growing share of these is replayed from a buffer. With rollouts made before the training all of them are.
    """

    threshold: float
    reference: float = math.nan
    """Validation loss that a rise is measured from: the one before training, then the last that counted as a rise."""

    def after(self, validation_loss: float, *, step: float, tolerance: float) -> MixingState:
        """The state after a validation."""
        if math.isnan(self.reference):
            return replace(self, reference=validation_loss)
        if validation_loss < self.reference + tolerance:
            return self
        return replace(self, threshold=min(1.0, self.threshold + step), reference=validation_loss)


def gradual_factors(*, progress: float) -> tuple[float, float]:
    """DistiLLM-2's factors of the term on teacher and on student prefixes: (2 - b, b), b = 1 + min(1, 2 progress) / 2."""
    b = 1 + 0.5 * min(1.0, 2 * progress)
    return 2 - b, b


def adaptive_alpha(difference: Float[Tensor, " s"], *, anchor: float, base: float) -> Float[Tensor, " s"]:
    """DistiLLM-2's skew of each sequence: clip(1 - (1 - base) anchor / (difference + 1e-5), `ALPHA_FLOOR`, base). [s]

    Args:
        difference: how much more probable a response is to its owner than to the other model, both as exp of the mean
            log-probability of its tokens.
        anchor: what that difference is in the first update, on average.
    """
    return (1 - (1 - base) * anchor / (difference + 1e-5)).clamp(min(ALPHA_FLOOR, base), base)
