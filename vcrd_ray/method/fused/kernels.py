"""Divergence, gradient and signals of rows of logits in one Triton kernel: the fused loss on GPUs.

The same interface and the same results as the plain torch path, to rounding in float32; that path is the reference. Knows
nothing of heads, hidden states or chunks.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vcrd_ray.method.divergences import Divergence, GeneralizedJSD, SkewedKL, SkewedReverseKL

_BLOCK = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelTokens:
    """What the kernel says of each row. All [n], float32 or int64."""

    value: Float[Tensor, " n"]
    """The divergence in nats."""
    student_argmax: Int[Tensor, " n"]
    student_proposal: Int[Tensor, " n"] | None
    teacher_prob_of_student_argmax: Float[Tensor, " n"]
    student_entropy: Float[Tensor, " n"]
    teacher_entropy: Float[Tensor, " n"]


def is_supported(divergence: object) -> bool:
    """Whether the kernel knows a divergence: the skewed ones with one alpha, the plain KLs, the generalised JSD."""
    match divergence:
        case SkewedKL() | SkewedReverseKL():
            return not isinstance(divergence.alpha, Tensor)
        case GeneralizedJSD():
            return True
    return False


def is_available(device: torch.device) -> bool:
    """Whether kernels run on a device: on CUDA where triton is installed; in triton's interpreter anywhere."""
    if importlib.util.find_spec("triton") is None:
        return False
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def divergence_rows(
    *,
    divergence: Divergence,
    student_logits: Float[Tensor, "n vs"],
    teacher_logits: Float[Tensor, "n vt"],
    vocab_size: int,
    uniform: Float[Tensor, " n"] | None,
    gradient: Float[Tensor, "n w"] | None,
) -> KernelTokens:
    """The divergence of each row, and its gradient with respect to the student's logits in `gradient`.

    Args:
        student_logits: columns at or beyond vocab_size are padding and no part of the distribution; likewise the
            teacher's. Last dimension contiguous.
        uniform: a number in (0, 1) for each row, to draw the student's proposal with by inverse CDF.
        gradient: where to write; its columns beyond vocab_size get 0. May be `student_logits` itself.

    Raises:
        ValueError: a divergence that the kernel does not know, or a layout that it cannot read.
    """
    if not is_supported(divergence):
        raise ValueError(f"{divergence} has no kernel; use the torch path")
    for name, tensor in (
        ("student_logits", student_logits),
        ("teacher_logits", teacher_logits),
        ("gradient", gradient),
    ):
        if tensor is not None and (tensor.stride(-1) != 1 or tensor.shape[1] < vocab_size):
            raise ValueError(f"{name} must be contiguous along at least vocab_size {vocab_size} columns")
    from vcrd_ray.method.fused import kernel_source

    n, device = len(student_logits), student_logits.device
    whole = [torch.empty(n, dtype=torch.int64, device=device) for _ in range(2)]
    real = [torch.empty(n, dtype=torch.float32, device=device) for _ in range(4)]
    match divergence:
        case SkewedKL():
            kind, share, detach = kernel_source.SKEWED_KL, divergence.alpha, False
        case SkewedReverseKL():
            kind, share, detach = kernel_source.SKEWED_REVERSE_KL, divergence.alpha, divergence.detach_mixture
        case GeneralizedJSD():
            kind, share, detach = kernel_source.JENSEN_SHANNON, divergence.beta, False
        case _:
            raise AssertionError(divergence)
    if n:
        kernel_source.divergence_kernel[(n,)](
            student_logits,
            teacher_logits,
            student_logits if gradient is None else gradient,
            real[0] if uniform is None else uniform.to(torch.float32),
            real[0],
            whole[0],
            whole[1],
            real[1],
            real[2],
            real[3],
            student_logits.stride(0),
            teacher_logits.stride(0),
            0 if gradient is None else gradient.stride(0),
            vocab_size,
            0 if gradient is None else gradient.shape[1],
            float(share),
            KIND=kind.value,
            ZERO_SHARE=share == 0,
            DETACH=detach,
            HAS_GRADIENT=gradient is not None,
            HAS_UNIFORM=uniform is not None,
            BLOCK=min(_BLOCK, 1 << (vocab_size - 1).bit_length()) if vocab_size > 1 else 2,
            num_warps=8,  # with four, a tile of this size spills registers
        )
    return KernelTokens(
        value=real[0],
        student_argmax=whole[0],
        student_proposal=None if uniform is None else whole[1],
        teacher_prob_of_student_argmax=real[1],
        student_entropy=real[2],
        teacher_entropy=real[3],
    )
