"""Hidden states -> divergence of each token and its gradient, chunk by chunk. Knows no weights, no models.

The logits of all tokens never exist at once: for each chunk of tokens both heads are applied, the divergence and its
gradient with respect to the logits are taken in closed form, and the gradient is pulled back through the student's head.
With a frozen head one gradient of the size of a hidden state is all that is kept, and the backward pass multiplies it
by whatever the token's divergence was multiplied with. So the factors may be decided after the forward pass:

    tokens = fused_divergence(...)                # now
    ((coefficient * weight) * tokens.divergence).sum().backward()      # when the weights have come

With a trained head the backward pass computes each chunk's logits once more, because the head's gradient sums over tokens
that have their factors by then.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from vcrd_ray.method.divergences import Divergence
from vcrd_ray.method.fused.chunk import Options, chunks, head_logits, make_chunk, pull_back
from vcrd_ray.method.fused.teachers import (
    HiddenTeacher,
    LogitsTeacher,
    PerSequenceSkew,
    TeacherDistribution,
    TopKTeacher,
)
from vcrd_ray.method.fused.tokens import FusedTokens

__all__ = [
    "FusedTokens",
    "HiddenTeacher",
    "LogitsTeacher",
    "PerSequenceSkew",
    "TeacherDistribution",
    "TopKTeacher",
    "fused_divergence",
    "fused_token_logp",
    "head_logits",
]


def fused_divergence(
    *,
    divergence: Divergence | PerSequenceSkew,
    student_hidden: Float[Tensor, "n ds"],
    student_head: Float[Tensor, "vs ds"],
    teacher: TeacherDistribution,
    vocab_size: int,
    chunk_rows: int,
    uniform: Float[Tensor, " n"] | None = None,
    teacher_probability_top_k: int | None = None,
) -> FusedTokens:
    """Divergence of each token, with what else the same logits tell.

    Args:
        vocab_size: tokens of the tokenizer; rows of either head beyond it are padding and no part of a distribution.
        chunk_rows: tokens whose logits exist at a time.
        uniform: a number in (0, 1) for each token, to sample the student's proposals with.
        teacher_probability_top_k: also take p(argmax q) and the collision sum over this many teacher tokens.

    Raises:
        ValueError: the two sides are not about the same tokens or vocabulary, or the teacher's tail hides what was asked for.
    """
    n, device = len(student_hidden), student_hidden.device
    _check(student_head, teacher, vocab_size=vocab_size, n=n, uniform=uniform, top_k=teacher_probability_top_k)
    work = torch.float64 if student_hidden.dtype == torch.float64 else torch.float32
    top_k = teacher_probability_top_k

    def buffer(wanted: bool, dtype: torch.dtype = work) -> Tensor | None:
        return torch.empty(n, dtype=dtype, device=device) if wanted else None

    found = FusedTokens(
        divergence=torch.empty(n, dtype=work, device=device),
        student_proposal=buffer(uniform is not None, torch.int64),
        teacher_prob_of_student_argmax=buffer(top_k is not None),
        teacher_collision=buffer(top_k is not None),
    )
    options = Options(
        divergence=divergence,
        teacher=teacher,
        vocab_size=vocab_size,
        chunk_rows=chunk_rows,
        top_k=top_k,
        dtype=work,
    )
    if not torch.is_grad_enabled():
        # An autograd function is told what requires a gradient, not whether anybody records.
        student_hidden, student_head = student_hidden.detach(), student_head.detach()
    values: Tensor = _Fused.apply(student_hidden, student_head, uniform, options, found)  # type: ignore[no-untyped-call]
    return dataclasses.replace(found, divergence=values)


@torch.no_grad()
def fused_token_logp(
    *,
    hidden: Float[Tensor, "n d"],
    head: Float[Tensor, "v d"],
    tokens: Int[Tensor, "n k"],
    vocab_size: int,
    chunk_rows: int,
) -> Float[Tensor, "n k"]:
    """Log-probabilities of k tokens at each position, chunk by chunk, without gradient."""
    work = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    values = torch.empty(tokens.shape, dtype=work, device=hidden.device)
    for span in chunks(len(hidden), chunk_rows):
        logits = head_logits(hidden[span], head, vocab_size=vocab_size, dtype=work)
        values[span] = logits.gather(1, tokens[span]) - logits.logsumexp(-1, keepdim=True)
    return values


def _check(
    student_head: Tensor,
    teacher: TeacherDistribution,
    *,
    vocab_size: int,
    n: int,
    uniform: Tensor | None,
    top_k: int | None,
) -> None:
    widths = {"student's head": len(student_head)}
    # A last chunk of one token would be spread over all tokens of the other model without a word.
    counts = {"uniform": n if uniform is None else len(uniform)}
    if isinstance(teacher, HiddenTeacher):
        widths["teacher's head"] = len(teacher.head)
        counts["teacher_hidden"] = len(teacher.hidden)
    elif isinstance(teacher, LogitsTeacher):
        widths["teacher's logit matrix"] = teacher.logits.shape[1]
        counts["teacher logits"] = len(teacher.logits)
    else:
        counts["teacher top-k"] = len(teacher.ids)
        if top_k is not None:
            raise ValueError("p(argmax q) and the collision sum need the teacher's whole distribution, not its top-k")
    for name, rows in widths.items():
        if rows < vocab_size:
            raise ValueError(f"the {name} covers {rows} tokens, fewer than vocab_size {vocab_size}")
    for name, found in counts.items():
        if found != n:
            raise ValueError(f"student_hidden has {n} tokens, {name} {found}; both must be about the same tokens")


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_head: Tensor,
        uniform: Tensor | None,
        options: Options,
        found: FusedTokens,
    ) -> Tensor:
        need_hidden, need_head = ctx.needs_input_grad[:2]
        values = found.divergence
        # With a trained head everything is computed again in the backward pass, so nothing is kept now.
        keep_gradient = need_hidden and not need_head
        gradient = torch.empty_like(student_hidden) if keep_gradient else None
        for span in chunks(len(values), options.chunk_rows):
            numbers = None if uniform is None else uniform[span]
            chunk, grad_logits = make_chunk(
                student_hidden[span], student_head, numbers, options, span, with_gradient=keep_gradient
            )
            found.fill(span, chunk)
            if gradient is not None and grad_logits is not None:
                gradient[span] = pull_back(grad_logits, student_head, options)
            del chunk, grad_logits  # or they would stand beside the next one's tensors
        ctx.keep_gradient, ctx.options = keep_gradient, options
        if keep_gradient:
            ctx.save_for_backward(gradient)
        elif need_head:
            ctx.save_for_backward(student_hidden, student_head)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nothing = (None,) * 3
        if ctx.keep_gradient:
            (gradient,) = ctx.saved_tensors
            # In float32 first: a bfloat16 factor would round every weight to three digits.
            return (gradient.to(factor.dtype) * factor[:, None]).to(gradient.dtype), None, *nothing
        student_hidden, student_head = ctx.saved_tensors
        options: Options = dataclasses.replace(ctx.options, top_k=None)
        grad_hidden = torch.empty_like(student_hidden)
        # Summed over chunks in the working precision; padding rows stay zero.
        grad_head = torch.zeros_like(student_head, dtype=options.dtype)
        for span in chunks(len(student_hidden), options.chunk_rows):
            _, grad_logits = make_chunk(student_hidden[span], student_head, None, options, span, with_gradient=True)
            assert grad_logits is not None
            grad_logits = grad_logits.mul_(factor[span, None])
            grad_hidden[span] = pull_back(grad_logits, student_head, options)
            grad_head[: options.vocab_size].addmm_(grad_logits.T, student_hidden[span].to(options.dtype))
            del grad_logits
        return grad_hidden, grad_head.to(student_head.dtype), *nothing
