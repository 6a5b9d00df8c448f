"""Divergence, gradient and signals of rows of logits in one Triton kernel: the fused loss on GPUs.

The same interface and the same results as the plain torch path, to rounding in float32; that path is the reference. Knows
nothing of heads, hidden states or chunks.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from jaxtyping import Float
from torch import Tensor

from vcrd_ray.method.divergences import Divergence, GeneralizedJSD, SkewedKL, SkewedReverseKL
from vcrd_ray.method.fused.tokens import FusedTokens

_BLOCK = 4096


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


def kernel_divergence(
    *,
    divergence: Divergence,
    student_logits: Float[Tensor, "n vs"],
    teacher_logits: Float[Tensor, "n vt"],
    vocab_size: int,
    uniform: Float[Tensor, " n"] | None,
    gradient: Float[Tensor, "n w"] | None,
) -> FusedTokens:
    """The divergence of each row, and its gradient with respect to the student's logits in `gradient`.

    Args:
        student_logits: columns at or beyond vocab_size are padding and no part of the distribution; likewise the
            teacher's. Last dimension contiguous.
        uniform: a number in (0, 1) for each row, to draw the student's proposal with by inverse CDF.
        gradient: where to write; its columns beyond vocab_size get 0. May be `student_logits` itself.

    Raises:
        ValueError: a divergence that the kernel does not know, or a layout that it cannot read.
    """
    _check(divergence, vocab_size, student_logits=student_logits, teacher_logits=teacher_logits, gradient=gradient)
    from vcrd_ray.method.fused import kernel_source

    n, device = len(student_logits), student_logits.device
    value, probability = (torch.empty(n, dtype=torch.float32, device=device) for _ in range(2))
    proposal = torch.empty(n, dtype=torch.int64, device=device)
    kind, share, detach = _kind(divergence)
    if n:
        kernel_source.divergence_kernel[(n,)](
            student_logits,
            teacher_logits,
            student_logits if gradient is None else gradient,
            value if uniform is None else uniform.to(torch.float32),
            value,
            proposal,
            probability,
            student_logits.stride(0),
            teacher_logits.stride(0),
            0 if gradient is None else gradient.stride(0),
            vocab_size,
            0 if gradient is None else gradient.shape[1],
            float(share),
            KIND=kind,
            ZERO_SHARE=share == 0,
            DETACH=detach,
            HAS_GRADIENT=gradient is not None,
            HAS_UNIFORM=uniform is not None,
            BLOCK=min(_BLOCK, 1 << (vocab_size - 1).bit_length()) if vocab_size > 1 else 2,
            num_warps=8,  # with four, a tile of this size spills registers
        )
    return FusedTokens(
        divergence=value,
        student_proposal=None if uniform is None else proposal,
        teacher_prob_of_student_argmax=probability,
        teacher_collision=None,
    )


def _check(divergence: Divergence, vocab_size: int, **tensors: Tensor | None) -> None:
    if not is_supported(divergence):
        raise ValueError(f"{divergence} has no kernel; use the torch path")
    for name, tensor in tensors.items():
        if tensor is not None and (tensor.stride(-1) != 1 or tensor.shape[1] < vocab_size):
            raise ValueError(f"{name} must be contiguous along at least vocab_size {vocab_size} columns")


def _kind(divergence: Divergence) -> tuple[int, float | Tensor, bool]:
    """(KIND, share, DETACH) of the kernel."""
    from vcrd_ray.method.fused import kernel_source

    match divergence:
        case SkewedKL():
            return kernel_source.SKEWED_KL.value, divergence.alpha, False
        case SkewedReverseKL():
            return kernel_source.SKEWED_REVERSE_KL.value, divergence.alpha, divergence.detach_mixture
        case GeneralizedJSD():
            return kernel_source.JENSEN_SHANNON.value, divergence.beta, False
    raise AssertionError(divergence)
