"""Everything about one chunk of tokens: divergence, gradient by the logits, signals. By plain torch, or by the kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vcrd_ray.method.divergences import Divergence
from vcrd_ray.method.fused import kernels
from vcrd_ray.method.fused.teachers import (
    HiddenTeacher,
    LogitsTeacher,
    PerSequenceSkew,
    TeacherDistribution,
    TopKTeacher,
)
from vcrd_ray.method.fused.tokens import FusedTokens
from vcrd_ray.method.sampling import sample_rows

_TILE_ROWS = 8192
"""Rows of a head that are converted at a time where it is not in the working precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is the same for all chunks."""

    divergence: Divergence | PerSequenceSkew
    teacher: TeacherDistribution
    vocab_size: int
    chunk_rows: int
    top_k: int | None
    dtype: torch.dtype
    """The working precision: float64 for hidden states in float64, else float32."""

    def by_kernel(self, device: torch.device) -> bool:
        """Whether the Triton kernel computes the chunks."""
        exact = not isinstance(self.teacher, TopKTeacher) and self.dtype == torch.float32
        return exact and kernels.is_supported(self.divergence) and kernels.is_available(device)

    def divergence_of(self, span: slice) -> Divergence:
        """The divergence of some tokens."""
        return self.divergence.of_tokens(span) if isinstance(self.divergence, PerSequenceSkew) else self.divergence


def make_chunk(
    hidden: Tensor, head: Tensor, uniform: Tensor | None, options: Options, span: slice, *, with_gradient: bool
) -> tuple[FusedTokens, Tensor | None]:
    """What is to be known of a chunk of tokens, and the gradient of its divergences by the logits [c, vocab_size]."""
    if options.by_kernel(hidden.device):
        return _chunk_by_kernel(hidden, head, uniform, options, span, with_gradient=with_gradient)
    student_logp = _logits(hidden, head, options).log_softmax(-1)
    pair = _distributions(student_logp, options, span)
    divergence = options.divergence_of(span)
    grad_logits = None
    if with_gradient:
        value, grad_logits = divergence.value_and_grad(teacher_logp=pair.teacher_logp, student_logp=pair.student_logp)
        grad_logits = pair.spread(grad_logits, student_logp)
    else:
        value = divergence.value(teacher_logp=pair.teacher_logp, student_logp=pair.student_logp)
    prob, collision = None, None
    if options.top_k is not None:
        prob = pair.teacher_logp.gather(1, student_logp.argmax(dim=-1)[:, None])[:, 0].exp()
        collision = _collision(pair.teacher_logp, options.top_k)
    found = FusedTokens(
        divergence=value,
        student_proposal=None if uniform is None else sample_rows(student_logp, uniform),
        teacher_prob_of_student_argmax=prob,
        teacher_collision=collision,
    )
    return found, grad_logits


def _chunk_by_kernel(
    hidden: Tensor, head: Tensor, uniform: Tensor | None, options: Options, span: slice, *, with_gradient: bool
) -> tuple[FusedTokens, Tensor | None]:
    logits = _logits(hidden, head, options)
    teacher_logits = _teacher_logits(options, span)
    # The gradient takes the place of the logits.
    found = kernels.kernel_divergence(
        divergence=options.divergence_of(span),
        student_logits=logits,
        teacher_logits=teacher_logits,
        vocab_size=options.vocab_size,
        uniform=uniform,
        gradient=logits if with_gradient else None,
    )
    if options.top_k is None:
        found = dataclasses.replace(found, teacher_prob_of_student_argmax=None)
    else:
        collision = _collision(teacher_logits.float().log_softmax(-1), options.top_k)
        found = dataclasses.replace(found, teacher_collision=collision)
    return found, logits if with_gradient else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Distributions:
    """What a chunk's divergence is taken of: the full distributions, or lumped ones whose last token is the tail."""

    teacher_logp: Tensor
    student_logp: Tensor
    ids: Tensor | None

    def spread(self, gradient: Tensor, student_logp: Tensor) -> Tensor:
        """Gradient by the lumped logits -> gradient by all logits: dD/dz_i = dD/dz_tail q_i / q_tail in the tail."""
        if self.ids is None:
            return gradient
        share = (student_logp - self.student_logp[:, -1:]).exp_().nan_to_num_(nan=0.0, posinf=0.0)
        return share.mul_(gradient[:, -1:]).scatter_(1, self.ids, gradient[:, :-1])


def _distributions(student_logp: Tensor, options: Options, span: slice) -> _Distributions:
    teacher = options.teacher
    if not isinstance(teacher, TopKTeacher):
        teacher_logp = _teacher_logits(options, span).log_softmax(-1)
        return _Distributions(teacher_logp=teacher_logp, student_logp=student_logp, ids=None)
    ids, teacher_logp = teacher.ids[span].long(), teacher.logp[span].to(options.dtype)
    # The student's tail from its own logits: 1 minus the rest would lose a small tail to rounding.
    tail = student_logp.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    mass = teacher_logp.exp().sum(-1, keepdim=True).clamp_max(1.0)
    return _Distributions(
        teacher_logp=torch.cat([teacher_logp, torch.log1p(-mass)], 1),
        student_logp=torch.cat([student_logp.gather(1, ids), tail], 1),
        ids=ids,
    )


def _teacher_logits(options: Options, span: slice) -> Tensor:
    """[c, vocab_size]"""
    teacher = options.teacher
    if isinstance(teacher, LogitsTeacher):
        return teacher.logits[span, : options.vocab_size].to(options.dtype)
    assert isinstance(teacher, HiddenTeacher)
    return _logits(teacher.hidden[span], teacher.head, options)


def _logits(hidden: Tensor, head: Tensor, options: Options) -> Tensor:
    return head_logits(hidden, head, vocab_size=options.vocab_size, dtype=options.dtype)


def head_logits(
    hidden: Float[Tensor, "c d"], head: Float[Tensor, "v d"], *, vocab_size: int, dtype: torch.dtype
) -> Float[Tensor, "c vocab"]:
    """Logits of the tokens, exactly in `dtype`, without a whole copy of a head that is in another. Without gradient."""
    if hidden.is_cuda and hidden.dtype == head.dtype == torch.bfloat16:
        # Products of bfloat16 numbers summed in float32, by tensor cores: what converting both first would give.
        return torch.mm(hidden, head[:vocab_size].detach().T, out_dtype=torch.float32)
    hidden = hidden.to(dtype)
    logits = hidden.new_empty(len(hidden), vocab_size)
    for tokens, part in _tiles(head, vocab_size, dtype):
        torch.mm(hidden, part.T, out=logits[:, tokens])
    return logits


def pull_back(grad_logits: Tensor, head: Tensor, options: Options) -> Tensor:
    """dL/dh = dL/dz W. [c, d]"""
    grad_hidden = grad_logits.new_zeros(len(grad_logits), head.shape[1])
    for tokens, part in _tiles(head, options.vocab_size, options.dtype):
        grad_hidden.addmm_(grad_logits[:, tokens], part)
    return grad_hidden


def _tiles(head: Tensor, vocab_size: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a head that stand for tokens, in the working precision: all at once where they are in it already.

    A bfloat16 head is converted tile by tile, because a whole copy of it would outweigh a chunk's logits.
    """
    size = vocab_size if head.dtype == dtype else _TILE_ROWS
    for tokens in chunks(vocab_size, size):
        yield tokens, head[tokens].detach().to(dtype)


def chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _collision(teacher_logp: Tensor, top_k: int) -> Tensor:
    """Sum of p^2 over the teacher's most probable tokens. [c]"""
    return (2 * teacher_logp.topk(min(top_k, teacher_logp.shape[-1]), dim=-1).values).exp().sum(dim=-1)
