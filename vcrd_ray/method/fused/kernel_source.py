"""The Triton kernel behind `vcrd_ray.method.fused.kernels`, which says when it is used. Importing this needs triton.

One program a row. It reads both rows of logits three times (log-sum-exps; divergence and mean of the signal; gradient) and
writes the gradient once. All arithmetic in float32; `q` and `p` are student and teacher, `signal` the bracket of the closed
forms in `vcrd_ray.method.divergences`.
"""

from __future__ import annotations

import triton
import triton.language as tl

SKEWED_KL = tl.constexpr(0)
SKEWED_REVERSE_KL = tl.constexpr(1)
JENSEN_SHANNON = tl.constexpr(2)

LOWEST = tl.constexpr(-3.4028234663852886e38)
"""The smallest float32 that is finite."""


@triton.jit
def _log_ratio(own, other, share):
    """ln(a / m), m = share a + (1 - share) b, of own = ln a, other = ln b; 0 where both are zero."""
    difference = tl.where((own == float("-inf")) & (other == float("-inf")), 0.0, other - own)
    # An exponential that overflowed would make the ratio -inf where a is a subnormal number, not 0. Beyond e^80 the
    # ratio is multiplied by an a below e^-80, so where exactly it ends does not show.
    return -tl.log(share + (1 - share) * tl.exp(tl.minimum(difference, 80.0)))


@triton.jit
def _signal(log_q, log_p, share, KIND: tl.constexpr, ZERO_SHARE: tl.constexpr, DETACH: tl.constexpr):
    """(what the row's divergence sums, what is compared with its mean under q in the gradient)."""
    q, p = tl.exp(log_q), tl.exp(log_p)
    if KIND == SKEWED_KL:
        if ZERO_SHARE:
            log_ratio = tl.where(p > 0, log_p - log_q, 0.0)
            return p * log_ratio, log_ratio
        log_ratio = _log_ratio(log_p, log_q, share)
        return tl.where(p > 0, p * log_ratio, 0.0), tl.exp(log_ratio)
    elif KIND == SKEWED_REVERSE_KL:
        if ZERO_SHARE:
            log_ratio = tl.where(q > 0, log_q - log_p, 0.0)
            # Where p = 0 < q the value is infinite and has no gradient: that token is left out of it.
            return q * log_ratio, tl.where(log_ratio == float("inf"), 0.0, log_ratio)
        log_ratio = _log_ratio(log_q, log_p, share)
        signal = log_ratio
        if not DETACH:
            signal = log_ratio - share * tl.exp(log_ratio)
        return tl.where(q > 0, q * log_ratio, 0.0), tl.where(q > 0, signal, 0.0)
    else:
        of_teacher = tl.where(p > 0, p * _log_ratio(log_p, log_q, share), 0.0)
        log_ratio = tl.where(q > 0, _log_ratio(log_q, log_p, 1 - share), 0.0)
        return share * of_teacher + (1 - share) * q * log_ratio, log_ratio


@triton.jit
def _logits(row_ptr, start, vocab_size, BLOCK: tl.constexpr):
    """A row's logits of a tile of tokens in float32; -inf beyond the vocabulary."""
    offsets = tl.arange(0, BLOCK)
    inside = start + offsets < vocab_size
    return tl.load(row_ptr + start + offsets, mask=inside, other=float("-inf")).to(tl.float32)


@triton.jit
def _log_sums(student_ptr, teacher_ptr, vocab_size, BLOCK: tl.constexpr):
    """(largest logit, ln of the sum of exp(logit - largest)) of both sides; the first largest token of the student."""
    q_max, q_sum, p_max, p_sum = float("-inf"), 0.0, float("-inf"), 0.0
    argmax = 0
    for start in range(0, vocab_size, BLOCK):
        z, t = _logits(student_ptr, start, vocab_size, BLOCK), _logits(teacher_ptr, start, vocab_size, BLOCK)
        tile_max = tl.max(z, 0)
        if tile_max > q_max:
            argmax = start + tl.argmax(z, 0)
        # Finite, or tiles of nothing but -inf would make exp(-inf - -inf).
        new = tl.maximum(tl.maximum(q_max, tile_max), LOWEST)
        q_sum = q_sum * tl.exp(q_max - new) + tl.sum(tl.exp(z - new), 0)
        q_max = new
        new = tl.maximum(tl.maximum(p_max, tl.max(t, 0)), LOWEST)
        p_sum = p_sum * tl.exp(p_max - new) + tl.sum(tl.exp(t - new), 0)
        p_max = new
    # Not added to one number: it would be rounded to the last digit of the largest logit.
    return q_max, tl.log(q_sum), p_max, tl.log(p_sum), argmax


@triton.jit
def _log_probabilities(
    student_ptr, teacher_ptr, start, vocab_size, q_max, log_q_sum, p_max, log_p_sum, BLOCK: tl.constexpr
):
    """(ln q, ln p) of a tile of tokens, by the row's log-sum-exps."""
    z, t = _logits(student_ptr, start, vocab_size, BLOCK), _logits(teacher_ptr, start, vocab_size, BLOCK)
    return (z - q_max) - log_q_sum, (t - p_max) - log_p_sum


@triton.jit
def _gradient(log_q, log_p, mean, share, KIND: tl.constexpr, ZERO_SHARE: tl.constexpr, DETACH: tl.constexpr):
    """Of the row's divergence by some student logits; `mean` is that of the signal under q."""
    q = tl.exp(log_q)
    if (KIND == SKEWED_KL) & ZERO_SHARE:
        return q - tl.exp(log_p)
    _, signal = _signal(log_q, log_p, share, KIND, ZERO_SHARE, DETACH)
    scale = 1.0
    if KIND == SKEWED_KL:
        scale = share - 1.0
    elif KIND == JENSEN_SHANNON:
        scale = 1.0 - share
    return tl.where(q > 0, scale * q * (signal - mean), 0.0)


@triton.jit
def _sums(
    student_ptr,
    teacher_ptr,
    vocab_size,
    q_max,
    log_q_sum,
    p_max,
    log_p_sum,
    target,
    share,
    KIND: tl.constexpr,
    ZERO_SHARE: tl.constexpr,
    DETACH: tl.constexpr,
    HAS_UNIFORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(divergence, mean of the signal under q, the token that the number `target` draws from q, if asked for)."""
    value, mean = 0.0, 0.0
    cumulative, proposal, last = 0.0, -1, 0
    for start in range(0, vocab_size, BLOCK):
        tokens = start + tl.arange(0, BLOCK)
        log_q, log_p = _log_probabilities(
            student_ptr, teacher_ptr, start, vocab_size, q_max, log_q_sum, p_max, log_p_sum, BLOCK
        )
        q = tl.exp(log_q)
        terms, signal = _signal(log_q, log_p, share, KIND, ZERO_SHARE, DETACH)
        value += tl.sum(tl.where(tokens < vocab_size, terms, 0.0), 0)
        mean += tl.sum(tl.where(q > 0, q * signal, 0.0), 0)
        if HAS_UNIFORM:
            # The first token at which the cumulative probability exceeds the number; rounding may leave the sum below
            # it, and then the last token is meant that float32 sees in a sum of 1.
            running = cumulative + tl.cumsum(q, 0)
            first = tl.min(tl.where((running > target) & (q > 0), tokens, 2147483647), 0)
            if (proposal < 0) & (first < 2147483647):
                proposal = first
            last = tl.maximum(last, tl.max(tl.where(q > 6.0e-8, tokens, 0), 0))
            cumulative += tl.sum(q, 0)
    return value, mean, tl.where(proposal < 0, last, proposal)


@triton.jit
def divergence_kernel(
    student_ptr,
    teacher_ptr,
    gradient_ptr,
    uniform_ptr,
    value_ptr,
    proposal_ptr,
    probability_ptr,
    student_stride,
    teacher_stride,
    gradient_stride,
    vocab_size,
    gradient_width,
    share,
    KIND: tl.constexpr,
    ZERO_SHARE: tl.constexpr,
    DETACH: tl.constexpr,
    HAS_GRADIENT: tl.constexpr,
    HAS_UNIFORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    student_ptr += row * student_stride
    teacher_ptr += row * teacher_stride
    q_max, log_q_sum, p_max, log_p_sum, argmax = _log_sums(student_ptr, teacher_ptr, vocab_size, BLOCK)
    of_argmax = tl.load(teacher_ptr + argmax).to(tl.float32)
    tl.store(probability_ptr + row, tl.exp((of_argmax - p_max) - log_p_sum))

    target = 0.0
    if HAS_UNIFORM:
        target = tl.load(uniform_ptr + row).to(tl.float32)
    value, mean, proposal = _sums(
        student_ptr, teacher_ptr, vocab_size, q_max, log_q_sum, p_max, log_p_sum, target, share,
        KIND, ZERO_SHARE, DETACH, HAS_UNIFORM, BLOCK,
    )  # fmt: skip
    tl.store(value_ptr + row, value)
    if HAS_UNIFORM:
        tl.store(proposal_ptr + row, proposal.to(tl.int64))

    if HAS_GRADIENT:
        gradient_ptr += row * gradient_stride
        offsets = tl.arange(0, BLOCK)
        for start in range(0, gradient_width, BLOCK):
            log_q, log_p = _log_probabilities(
                student_ptr, teacher_ptr, start, vocab_size, q_max, log_q_sum, p_max, log_p_sum, BLOCK
            )
            gradient = _gradient(log_q, log_p, mean, share, KIND, ZERO_SHARE, DETACH)
            # Padding columns of the buffer get 0.
            gradient = tl.where(start + offsets < vocab_size, gradient, 0.0)
            tl.store(gradient_ptr + start + offsets, gradient, mask=start + offsets < gradient_width)
