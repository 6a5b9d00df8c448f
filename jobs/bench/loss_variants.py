"""Fused, dense and Liger's loss behind one signature, on inputs of any size, for `jobs.bench loss`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.bench.loss import COMMON

if TYPE_CHECKING:
    import torch

    from vcrd_ray.method.divergences import Divergence


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What every variant is given."""

    factor: torch.Tensor
    """What each row's divergence is multiplied with. [n]"""
    student_hidden: torch.Tensor
    """[n, ds]"""
    student_head: torch.Tensor
    """[v, ds]"""
    teacher_hidden: torch.Tensor
    """[n, dt]"""
    teacher_head: torch.Tensor
    """[v, dt]"""


def random_inputs(*, rows: int, vocab: int, student_hidden: int, teacher_hidden: int) -> Inputs:
    """The same for each variant."""
    import torch

    torch.manual_seed(0)
    # Logits of variance 1. Uniform numbers are several times quicker to draw than normal ones.
    student_head, teacher_head = (
        torch.empty(vocab, size).uniform_(-1, 1).mul_((3 / size) ** 0.5) for size in (student_hidden, teacher_hidden)
    )
    return Inputs(
        factor=torch.rand(rows),
        student_hidden=torch.randn(rows, student_hidden).requires_grad_(),
        student_head=student_head,
        teacher_hidden=torch.randn(rows, teacher_hidden),
        teacher_head=teacher_head,
    )


def _divergence(name: str) -> Divergence:
    from vcrd_ray.method.divergences import GeneralizedJSD, SkewedKL, SkewedReverseKL

    if name == COMMON:
        return GeneralizedJSD(beta=0.5)
    return SkewedKL(alpha=0.1) if name == "skl" else SkewedReverseKL(alpha=0.1, detach_mixture=True)


def _dense(name: str, inputs: Inputs, chunk_rows: int) -> torch.Tensor:
    import torch

    rows = _divergence(name).value(
        teacher_logp=torch.log_softmax(inputs.teacher_hidden @ inputs.teacher_head.T, dim=-1),
        student_logp=torch.log_softmax(inputs.student_hidden @ inputs.student_head.T, dim=-1),
    )
    return (inputs.factor * rows).sum()


def _fused(name: str, inputs: Inputs, chunk_rows: int) -> torch.Tensor:
    from vcrd_ray.method.fused import HiddenTeacher, fused_divergence

    rows = fused_divergence(
        divergence=_divergence(name),
        student_hidden=inputs.student_hidden,
        student_head=inputs.student_head,
        teacher=HiddenTeacher(hidden=inputs.teacher_hidden, head=inputs.teacher_head),
        vocab_size=len(inputs.student_head),
        chunk_rows=chunk_rows,
    ).divergence
    return (inputs.factor * rows).sum()


def _liger(name: str, inputs: Inputs, chunk_rows: int) -> torch.Tensor:
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    assert name == COMMON
    loss = LigerFusedLinearJSDLoss(
        beta=0.5, weight_hard_loss=0.0, weight_soft_loss=1.0, chunk_size=chunk_rows, compiled=True
    )
    labels = torch.zeros(len(inputs.student_hidden), dtype=torch.int64)  # of no use without hard loss; none is padding
    mean: torch.Tensor = loss(
        inputs.student_hidden, inputs.student_head, inputs.teacher_hidden, inputs.teacher_head, labels
    )
    return mean


LOSS_OF: Mapping[str, Callable[[str, Inputs, int], torch.Tensor]] = {"dense": _dense, "fused": _fused, "liger": _liger}
"""(divergence by name, inputs, rows of a chunk) -> loss."""
