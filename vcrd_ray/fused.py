"""Hidden states of both models -> divergence of each row and its gradient, chunk by chunk. Knows no weights, no models.

The logits of all rows never exist at once: for each chunk of rows both heads are applied, the divergence and its
gradient with respect to the logits are taken in closed form, and the gradient is pulled back through the student's head.
With a frozen head one gradient row of the size of a hidden state is all that is kept, and the backward pass multiplies it
by whatever the row's divergence was multiplied with. So the factors may be decided after the forward pass:

    rows = fused_divergence(...)                  # now
    ((coefficient * weight) * rows.divergence).sum().backward()      # when the weights have come

With a trained head the backward pass computes each chunk's logits once more, because the head's gradient sums over rows
that have their factors by then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from vcrd_ray.divergences import Divergence
from vcrd_ray.sampling import sample_rows

_TILE_ROWS = 8192
"""Rows of a head that are converted at a time where it is not in the working precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FusedRows:
    """What one pass over the chunks gives. All [n]; only `divergence` carries a gradient."""

    divergence: Float[Tensor, " n"]
    student_argmax: Int[Tensor, " n"]
    student_proposal: Int[Tensor, " n"] | None
    """Sampled from the student's distribution; None where no uniform numbers were given."""
    teacher_prob_of_student_argmax: Float[Tensor, " n"] | None
    """p(argmax q); None unless a top-k was asked for."""
    teacher_collision: Float[Tensor, " n"] | None
    """Sum of p^2 over the teacher's top-k tokens; None unless a top-k was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    divergence: Divergence
    vocab_size: int
    chunk_rows: int
    top_k: int | None
    dtype: torch.dtype
    """The working precision: float64 for hidden states in float64, else float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Signals:
    """Buffers of [n] that the forward pass fills; they are outputs without gradient."""

    argmax: Tensor
    proposal: Tensor | None
    prob: Tensor | None
    collision: Tensor | None


def fused_divergence(
    *,
    divergence: Divergence,
    student_hidden: Float[Tensor, "n ds"],
    student_head: Float[Tensor, "vs ds"],
    teacher_hidden: Float[Tensor, "n dt"],
    teacher_head: Float[Tensor, "vt dt"],
    vocab_size: int,
    chunk_rows: int,
    uniform: Float[Tensor, " n"] | None,
    teacher_probability_top_k: int | None,
) -> FusedRows:
    """Divergence of each row, with what else the same logits tell.

    Args:
        vocab_size: tokens of the tokenizer; rows of either head beyond it are padding and no part of a distribution.
        chunk_rows: rows whose logits exist at a time.
        uniform: a number in (0, 1) for each row, to sample the student's proposals with.
        teacher_probability_top_k: also take p(argmax q) and the collision sum over this many teacher tokens.
    """
    for name, head in (("student", student_head), ("teacher", teacher_head)):
        if len(head) < vocab_size:
            raise ValueError(f"the {name}'s head has {len(head)} rows, fewer than vocab_size {vocab_size}")
    n, device = len(student_hidden), student_hidden.device
    # A last chunk of one row would be spread over all rows of the other model without a word.
    for name, rows in (("teacher_hidden", teacher_hidden), ("uniform", uniform)):
        if rows is not None and len(rows) != n:
            raise ValueError(f"student_hidden has {n} rows, {name} {len(rows)}; both must be about the same rows")
    work = torch.float64 if student_hidden.dtype == torch.float64 else torch.float32
    top_k = teacher_probability_top_k
    signals = _Signals(
        argmax=torch.empty(n, dtype=torch.int64, device=device),
        proposal=None if uniform is None else torch.empty(n, dtype=torch.int64, device=device),
        prob=None if top_k is None else torch.empty(n, dtype=work, device=device),
        collision=None if top_k is None else torch.empty(n, dtype=work, device=device),
    )
    options = _Options(divergence=divergence, vocab_size=vocab_size, chunk_rows=chunk_rows, top_k=top_k, dtype=work)
    if not torch.is_grad_enabled():
        # An autograd function is told what requires a gradient, not whether anybody records.
        student_hidden, student_head = student_hidden.detach(), student_head.detach()
    values: Tensor = _Fused.apply(  # type: ignore[no-untyped-call]
        student_hidden, student_head, teacher_hidden.detach(), teacher_head.detach(), uniform, options, signals
    )
    return FusedRows(
        divergence=values,
        student_argmax=signals.argmax,
        student_proposal=signals.proposal,
        teacher_prob_of_student_argmax=signals.prob,
        teacher_collision=signals.collision,
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_head: Tensor,
        teacher_hidden: Tensor,
        teacher_head: Tensor,
        uniform: Tensor | None,
        options: _Options,
        signals: _Signals,
    ) -> Tensor:
        need_hidden, need_head = ctx.needs_input_grad[:2]
        values = torch.empty(len(student_hidden), dtype=options.dtype, device=student_hidden.device)
        # With a trained head everything is computed again in the backward pass, so nothing is kept now.
        keep_rows = need_hidden and not need_head
        gradient = torch.empty_like(student_hidden) if keep_rows else None
        for rows in _chunks(len(values), options.chunk_rows):
            student_logp = _logp(student_hidden[rows], student_head, options)
            teacher_logp = _logp(teacher_hidden[rows], teacher_head, options)
            _fill(signals, rows, student_logp, teacher_logp, uniform, options.top_k)
            if gradient is None:
                values[rows] = options.divergence.value(teacher_logp=teacher_logp, student_logp=student_logp)
                continue
            values[rows], grad_logits = options.divergence.value_and_grad(
                teacher_logp=teacher_logp, student_logp=student_logp
            )
            gradient[rows] = _pull_back(grad_logits, student_head, options)
            del grad_logits  # or it would stand beside the next chunk's tensors
        ctx.keep_rows, ctx.options = keep_rows, options
        if keep_rows:
            ctx.save_for_backward(gradient)
        elif need_head:
            ctx.save_for_backward(student_hidden, student_head, teacher_hidden, teacher_head)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nothing = (None,) * 5
        if ctx.keep_rows:
            (gradient,) = ctx.saved_tensors
            # In float32 first: a bfloat16 factor would round every weight to three digits.
            return (gradient.to(factor.dtype) * factor[:, None]).to(gradient.dtype), None, *nothing
        student_hidden, student_head, teacher_hidden, teacher_head = ctx.saved_tensors
        options: _Options = ctx.options
        grad_hidden = torch.empty_like(student_hidden)
        # Summed over chunks in the working precision; padding rows stay zero.
        grad_head = torch.zeros_like(student_head, dtype=options.dtype)
        for rows in _chunks(len(student_hidden), options.chunk_rows):
            student_logp = _logp(student_hidden[rows], student_head, options)
            teacher_logp = _logp(teacher_hidden[rows], teacher_head, options)
            _, grad_logits = options.divergence.value_and_grad(teacher_logp=teacher_logp, student_logp=student_logp)
            grad_logits *= factor[rows, None]
            grad_hidden[rows] = _pull_back(grad_logits, student_head, options)
            grad_head[: options.vocab_size].addmm_(grad_logits.T, student_hidden[rows].to(options.dtype))
            del grad_logits
        return grad_hidden, grad_head.to(student_head.dtype), *nothing


def _logp(hidden: Tensor, head: Tensor, options: _Options) -> Tensor:
    """Log-probabilities of the tokens. [c, vocab_size]"""
    hidden = hidden.to(options.dtype)
    logits = hidden.new_empty(len(hidden), options.vocab_size)
    for tokens, part in _tiles(head, options):
        torch.mm(hidden, part.T, out=logits[:, tokens])
    return torch.log_softmax(logits, dim=-1)


def _pull_back(grad_logits: Tensor, head: Tensor, options: _Options) -> Tensor:
    """dL/dh = dL/dz W. [c, d]"""
    grad_hidden = grad_logits.new_zeros(len(grad_logits), head.shape[1])
    for tokens, part in _tiles(head, options):
        grad_hidden.addmm_(grad_logits[:, tokens], part)
    return grad_hidden


def _tiles(head: Tensor, options: _Options) -> Iterator[tuple[slice, Tensor]]:
    """The rows of a head that stand for tokens, in the working precision: all at once where they are in it already.

    A bfloat16 head is converted tile by tile, because a whole copy of it would outweigh a chunk's logits.
    """
    size = options.vocab_size if head.dtype == options.dtype else _TILE_ROWS
    for tokens in _chunks(options.vocab_size, size):
        yield tokens, head[tokens].to(options.dtype)


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _fill(
    signals: _Signals,
    rows: slice,
    student_logp: Tensor,
    teacher_logp: Tensor,
    uniform: Tensor | None,
    top_k: int | None,
) -> None:
    argmax = student_logp.argmax(dim=-1)
    signals.argmax[rows] = argmax
    if signals.proposal is not None and uniform is not None:
        signals.proposal[rows] = sample_rows(student_logp, uniform[rows])
    if signals.prob is not None and signals.collision is not None and top_k is not None:
        signals.prob[rows] = teacher_logp.gather(1, argmax[:, None])[:, 0].exp()
        largest = teacher_logp.topk(min(top_k, teacher_logp.shape[-1]), dim=-1).values
        signals.collision[rows] = (2 * largest).exp().sum(dim=-1)
