"""Whether what a model says and is are numbers; who it was, and where, where they are not. Knows no loss and no training.

A NaN spreads in one update to everything that is trained. So a run stops at the first, with its update, its role and its pair.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from vcrd_ray.errors import NotFiniteError
from vcrd_ray.models.wire import from_wire
from vcrd_ray.types import IntArray, PairBatch, Side, TeacherLogits, TeacherSignals, TeacherStates

_CURES = {
    "teacher": "check the teacher's checkpoint, or set teacher.dtype to float32",
    "student": "check the student's checkpoint, or lower optim.lr",
}
_CPU = torch.device("cpu")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite: one pass that makes no copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or an infinity; None where all are finite.

    Of a parameter that ZeRO-3 has cut in pieces this rank's piece is looked at.
    """
    for name, tensor in tensors:
        if not is_finite(tensor) or not is_finite(getattr(tensor, "ds_tensor", tensor)):
            return name
    return None


def check_update(update: int, student: torch.nn.Module, **figures: float) -> None:
    """Refuse an update of whose figures one is no number. They are sums over all ranks, so all of them stop.

    Raises:
        NotFiniteError: names the update, the figure, and a weight of the student that is no number.
    """
    for name, value in figures.items():
        if not np.isfinite(value):
            weight = first_not_finite(student.named_parameters())
            where = f" and its {weight} holds NaN or an infinity" if weight else ""
            raise NotFiniteError(f"update {update}: the student's {name} is {value}{where}; {_CURES['student']}")


def check_tokens(batch: PairBatch, role: Literal["teacher", "student"], what: str, good: npt.NDArray[np.bool_]) -> None:
    """Refuse a micro-batch with a token that is not good.

    Args:
        what: is wrong with it.
        good: in token order. [N]

    Raises:
        NotFiniteError: names the update, the role and the pair.
    """
    if good.all():
        return
    layout, token = batch.layout, int(np.flatnonzero(~good)[0])
    side = "teacher" if layout.is_teacher[token] else "student"
    raise NotFiniteError(
        f"update {batch.update}: the {role}'s {what} NaN or infinite for pair {batch.pairs[layout.pair[token]].id!r}, token"
        f" {layout.position[token]} of the {side}'s response; {_CURES[role]}"
    )


def check_proposals(
    batch: PairBatch, role: Literal["teacher", "student"], proposals: IntArray, *, side: Side, vocab_size: int
) -> None:
    """The same of the tokens drawn on one side's prefixes: a distribution that is none gives no token."""
    good = np.ones(batch.layout.num_tokens, dtype=bool)
    good[batch.layout.span(side)] = (proposals >= 0) & (proposals < vocab_size)
    check_tokens(batch, role, "logits are", good)


def check_signals(batch: PairBatch, signals: TeacherSignals) -> None:
    """The same of a teacher's distributions, as they arrive."""
    match signals.distribution:
        case TeacherStates(states=array):
            what = "final hidden states are"
        case TeacherLogits(logits=array):
            what = "logits are"
        case distribution:
            array, what = distribution.logp, "log-probabilities are"
    values = from_wire(array, _CPU)
    # A token may be impossible, a state may not.
    impossible = not isinstance(signals.distribution, TeacherStates)
    low, high = torch.aminmax(values)
    if not torch.isfinite(high) or not (impossible or torch.isfinite(low)):
        good = torch.isfinite(values) | (impossible & (values == -torch.inf))
        check_tokens(batch, "teacher", what, good.all(dim=-1).numpy())
