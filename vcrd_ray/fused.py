"""Hidden states -> divergence of each row and its gradient, chunk by chunk. Knows no weights, no models.

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

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from vcrd_ray import kernels
from vcrd_ray.divergences import Divergence, SkewedKL, SkewedReverseKL
from vcrd_ray.sampling import sample_rows

_TILE_ROWS = 8192
"""Rows of a head that are converted at a time where it is not in the working precision."""


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

    A divergence of the lumped distributions is never larger than that of the full ones: a biased signal. With one token of
    log-probability 0 it is exact and is a one-hot target, for which the forward KL is the cross-entropy.
    """

    ids: Int[Tensor, "n k"]
    logp: Float[Tensor, "n k"]


TeacherRows = HiddenTeacher | LogitsTeacher | TopKTeacher


@dataclass(frozen=True, kw_only=True, slots=True)
class PerSequenceSkew:
    """A skewed divergence whose alpha differs from row to row."""

    base: SkewedKL | SkewedReverseKL
    alpha: Float[Tensor, " n"]

    def of_rows(self, rows: slice) -> Divergence:
        """The divergence of a chunk."""
        return dataclasses.replace(self.base, alpha=self.alpha[rows, None])


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
    student_entropy: Float[Tensor, " n"] | None
    """H(q) in nats; None unless entropies were asked for."""
    teacher_entropy: Float[Tensor, " n"] | None
    """H(p) in nats (of the lumped distribution for a `TopKTeacher`); None unless entropies were asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    divergence: Divergence | PerSequenceSkew
    teacher: TeacherRows
    vocab_size: int
    chunk_rows: int
    top_k: int | None
    dtype: torch.dtype
    """The working precision: float64 for hidden states in float64, else float32."""

    entropies: bool

    def by_kernel(self, device: torch.device) -> bool:
        """Whether the Triton kernel computes the chunks."""
        exact = not isinstance(self.teacher, TopKTeacher) and self.dtype == torch.float32
        return exact and kernels.is_supported(self.divergence) and kernels.is_available(device)

    def divergence_of(self, rows: slice) -> Divergence:
        return self.divergence.of_rows(rows) if isinstance(self.divergence, PerSequenceSkew) else self.divergence


@dataclass(frozen=True, kw_only=True, slots=True)
class _Signals:
    """Buffers of [n] that the forward pass fills; they are outputs without gradient."""

    argmax: Tensor
    proposal: Tensor | None
    prob: Tensor | None
    collision: Tensor | None
    student_entropy: Tensor | None
    teacher_entropy: Tensor | None

    def fill(self, rows: slice, chunk: _Chunk) -> None:
        """Take over what a chunk says of its rows."""
        for field in dataclasses.fields(self):
            buffer = getattr(self, field.name)
            if buffer is not None:
                buffer[rows] = getattr(chunk, field.name)


def fused_divergence(
    *,
    divergence: Divergence | PerSequenceSkew,
    student_hidden: Float[Tensor, "n ds"],
    student_head: Float[Tensor, "vs ds"],
    teacher: TeacherRows,
    vocab_size: int,
    chunk_rows: int,
    uniform: Float[Tensor, " n"] | None = None,
    teacher_probability_top_k: int | None = None,
    entropies: bool = False,
) -> FusedRows:
    """Divergence of each row, with what else the same logits tell.

    Args:
        vocab_size: tokens of the tokenizer; rows of either head beyond it are padding and no part of a distribution.
        chunk_rows: rows whose logits exist at a time.
        uniform: a number in (0, 1) for each row, to sample the student's proposals with.
        teacher_probability_top_k: also take p(argmax q) and the collision sum over this many teacher tokens.
        entropies: also take the entropies of both distributions.

    Raises:
        ValueError: the two sides are not about the same rows or tokens, or the teacher's tail hides what was asked for.
    """
    n, device = len(student_hidden), student_hidden.device
    _check(student_head, teacher, vocab_size=vocab_size, n=n, uniform=uniform, top_k=teacher_probability_top_k)
    work = torch.float64 if student_hidden.dtype == torch.float64 else torch.float32
    top_k = teacher_probability_top_k

    def buffer(wanted: bool, dtype: torch.dtype = work) -> Tensor | None:
        return torch.empty(n, dtype=dtype, device=device) if wanted else None

    signals = _Signals(
        argmax=torch.empty(n, dtype=torch.int64, device=device),
        proposal=buffer(uniform is not None, torch.int64),
        prob=buffer(top_k is not None),
        collision=buffer(top_k is not None),
        student_entropy=buffer(entropies),
        teacher_entropy=buffer(entropies),
    )
    options = _Options(
        divergence=divergence,
        teacher=teacher,
        vocab_size=vocab_size,
        chunk_rows=chunk_rows,
        top_k=top_k,
        dtype=work,
        entropies=entropies,
    )
    if not torch.is_grad_enabled():
        # An autograd function is told what requires a gradient, not whether anybody records.
        student_hidden, student_head = student_hidden.detach(), student_head.detach()
    values: Tensor = _Fused.apply(student_hidden, student_head, uniform, options, signals)  # type: ignore[no-untyped-call]
    return FusedRows(
        divergence=values,
        student_argmax=signals.argmax,
        student_proposal=signals.proposal,
        teacher_prob_of_student_argmax=signals.prob,
        teacher_collision=signals.collision,
        student_entropy=signals.student_entropy,
        teacher_entropy=signals.teacher_entropy,
    )


@torch.no_grad()
def fused_token_logp(
    *,
    hidden: Float[Tensor, "n d"],
    head: Float[Tensor, "v d"],
    tokens: Int[Tensor, " n"],
    vocab_size: int,
    chunk_rows: int,
) -> Float[Tensor, " n"]:
    """Log-probability of one token a row, chunk by chunk, without gradient. [n]"""
    work = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    values = torch.empty(len(hidden), dtype=work, device=hidden.device)
    for rows in _chunks(len(hidden), chunk_rows):
        logits = hidden[rows].to(work) @ head[:vocab_size].to(work).T
        values[rows] = logits.gather(1, tokens[rows, None])[:, 0] - logits.logsumexp(-1)
    return values


def _check(
    student_head: Tensor, teacher: TeacherRows, *, vocab_size: int, n: int, uniform: Tensor | None, top_k: int | None
) -> None:
    widths = {"student's head": len(student_head)}
    # A last chunk of one row would be spread over all rows of the other model without a word.
    counts = {"uniform": n if uniform is None else len(uniform)}
    if isinstance(teacher, HiddenTeacher):
        widths["teacher's head"] = len(teacher.head)
        counts["teacher_hidden"] = len(teacher.hidden)
    elif isinstance(teacher, LogitsTeacher):
        widths["teacher's logits"] = teacher.logits.shape[1]
        counts["teacher logits"] = len(teacher.logits)
    else:
        counts["teacher top-k"] = len(teacher.ids)
        if top_k is not None:
            raise ValueError("p(argmax q) and the collision sum need the teacher's whole distribution, not its top-k")
    for name, rows in widths.items():
        if rows < vocab_size:
            raise ValueError(f"the {name} has {rows} rows, fewer than vocab_size {vocab_size}")
    for name, rows in counts.items():
        if rows != n:
            raise ValueError(f"student_hidden has {n} rows, {name} {rows}; both must be about the same rows")


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_head: Tensor,
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
            numbers = None if uniform is None else uniform[rows]
            chunk = _chunk(student_hidden[rows], student_head, numbers, options, rows, with_gradient=keep_rows)
            values[rows] = chunk.value
            signals.fill(rows, chunk)
            if gradient is not None and chunk.grad_logits is not None:
                gradient[rows] = _pull_back(chunk.grad_logits, student_head, options)
            del chunk  # or it would stand beside the next one's tensors
        ctx.keep_rows, ctx.options = keep_rows, options
        if keep_rows:
            ctx.save_for_backward(gradient)
        elif need_head:
            ctx.save_for_backward(student_hidden, student_head)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        nothing = (None,) * 3
        if ctx.keep_rows:
            (gradient,) = ctx.saved_tensors
            # In float32 first: a bfloat16 factor would round every weight to three digits.
            return (gradient.to(factor.dtype) * factor[:, None]).to(gradient.dtype), None, *nothing
        student_hidden, student_head = ctx.saved_tensors
        options: _Options = dataclasses.replace(ctx.options, top_k=None, entropies=False)
        grad_hidden = torch.empty_like(student_hidden)
        # Summed over chunks in the working precision; padding rows stay zero.
        grad_head = torch.zeros_like(student_head, dtype=options.dtype)
        for rows in _chunks(len(student_hidden), options.chunk_rows):
            chunk = _chunk(student_hidden[rows], student_head, None, options, rows, with_gradient=True)
            assert chunk.grad_logits is not None
            grad_logits = chunk.grad_logits.mul_(factor[rows, None])
            grad_hidden[rows] = _pull_back(grad_logits, student_head, options)
            grad_head[: options.vocab_size].addmm_(grad_logits.T, student_hidden[rows].to(options.dtype))
            del chunk, grad_logits
        return grad_hidden, grad_head.to(student_head.dtype), *nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Chunk:
    """Everything about a chunk of rows; what was not asked for is None. All [c] but the gradient."""

    value: Tensor
    grad_logits: Tensor | None
    """[c, vocab_size]"""
    argmax: Tensor
    proposal: Tensor | None = None
    prob: Tensor | None = None
    collision: Tensor | None = None
    student_entropy: Tensor | None = None
    teacher_entropy: Tensor | None = None


def _chunk(
    hidden: Tensor, head: Tensor, uniform: Tensor | None, options: _Options, rows: slice, *, with_gradient: bool
) -> _Chunk:
    if options.by_kernel(hidden.device):
        return _chunk_by_kernel(hidden, head, uniform, options, rows, with_gradient=with_gradient)
    student_logp = _logits(hidden, head, options).log_softmax(-1)
    pair = _distributions(student_logp, options, rows)
    divergence = options.divergence_of(rows)
    argmax = student_logp.argmax(dim=-1)
    grad_logits = None
    if with_gradient:
        value, grad_logits = divergence.value_and_grad(teacher_logp=pair.teacher_logp, student_logp=pair.student_logp)
        grad_logits = pair.spread(grad_logits, student_logp)
    else:
        value = divergence.value(teacher_logp=pair.teacher_logp, student_logp=pair.student_logp)
    wanted, top_k = options.entropies, options.top_k
    return _Chunk(
        value=value,
        grad_logits=grad_logits,
        argmax=argmax,
        proposal=None if uniform is None else sample_rows(student_logp, uniform),
        prob=None if top_k is None else pair.teacher_logp.gather(1, argmax[:, None])[:, 0].exp(),
        collision=None if top_k is None else _collision(pair.teacher_logp, top_k),
        student_entropy=_entropy(student_logp) if wanted else None,
        teacher_entropy=_entropy(pair.teacher_logp) if wanted else None,
    )


def _chunk_by_kernel(
    hidden: Tensor, head: Tensor, uniform: Tensor | None, options: _Options, rows: slice, *, with_gradient: bool
) -> _Chunk:
    logits = _logits(hidden, head, options)
    teacher_logits = _teacher_logits(options, rows)
    # The gradient takes the place of the logits.
    found = kernels.divergence_rows(
        divergence=options.divergence_of(rows),
        student_logits=logits,
        teacher_logits=teacher_logits,
        vocab_size=options.vocab_size,
        uniform=uniform,
        gradient=logits if with_gradient else None,
    )
    wanted, top_k = options.entropies, options.top_k
    return _Chunk(
        value=found.value,
        grad_logits=logits if with_gradient else None,
        argmax=found.student_argmax,
        proposal=found.student_proposal,
        prob=None if top_k is None else found.teacher_prob_of_student_argmax,
        collision=None if top_k is None else _collision(teacher_logits.float().log_softmax(-1), top_k),
        student_entropy=found.student_entropy if wanted else None,
        teacher_entropy=found.teacher_entropy if wanted else None,
    )


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


def _distributions(student_logp: Tensor, options: _Options, rows: slice) -> _Distributions:
    teacher = options.teacher
    if not isinstance(teacher, TopKTeacher):
        teacher_logp = _teacher_logits(options, rows).log_softmax(-1)
        return _Distributions(teacher_logp=teacher_logp, student_logp=student_logp, ids=None)
    ids, teacher_logp = teacher.ids[rows].long(), teacher.logp[rows].to(options.dtype)
    # The student's tail from its own logits: 1 minus the rest would lose a small tail to rounding.
    tail = student_logp.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    mass = teacher_logp.exp().sum(-1, keepdim=True).clamp_max(1.0)
    return _Distributions(
        teacher_logp=torch.cat([teacher_logp, torch.log1p(-mass)], 1),
        student_logp=torch.cat([student_logp.gather(1, ids), tail], 1),
        ids=ids,
    )


def _teacher_logits(options: _Options, rows: slice) -> Tensor:
    """[c, vocab_size]"""
    teacher = options.teacher
    if isinstance(teacher, LogitsTeacher):
        return teacher.logits[rows, : options.vocab_size].to(options.dtype)
    assert isinstance(teacher, HiddenTeacher)
    return _logits(teacher.hidden[rows], teacher.head, options)


def _logits(hidden: Tensor, head: Tensor, options: _Options) -> Tensor:
    """Logits of the tokens in the working precision. [c, vocab_size]"""
    if hidden.is_cuda and hidden.dtype == head.dtype == torch.bfloat16:
        # Products of bfloat16 numbers summed in float32, by tensor cores: what converting both first would give.
        return torch.mm(hidden, head[: options.vocab_size].detach().T, out_dtype=torch.float32)
    hidden = hidden.to(options.dtype)
    logits = hidden.new_empty(len(hidden), options.vocab_size)
    for tokens, part in _tiles(head, options.vocab_size, options.dtype):
        torch.mm(hidden, part.T, out=logits[:, tokens])
    return logits


def _pull_back(grad_logits: Tensor, head: Tensor, options: _Options) -> Tensor:
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
    for tokens in _chunks(vocab_size, size):
        yield tokens, head[tokens].detach().to(dtype)


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _collision(teacher_logp: Tensor, top_k: int) -> Tensor:
    """Sum of p^2 over the teacher's most probable tokens. [c]"""
    return (2 * teacher_logp.topk(min(top_k, teacher_logp.shape[-1]), dim=-1).values).exp().sum(dim=-1)


def _entropy(logp: Tensor) -> Tensor:
    probability = logp.exp()
    return -(probability * logp.masked_fill(probability == 0, 0.0)).sum(-1)
