"""The Triton kernel on a CUDA device against the torch path in float64, at the vocabularies of real models."""

from __future__ import annotations

import pytest
import torch

from vcrd_ray.method.divergences import Divergence, GeneralizedJSD, SkewedKL, SkewedReverseKL
from vcrd_ray.method.fused import kernels

pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")

DIVERGENCES: list[Divergence] = [
    SkewedKL(alpha=0.1),
    SkewedKL(alpha=0.0),
    SkewedReverseKL(alpha=0.1, detach_mixture=True),
    SkewedReverseKL(alpha=0.1, detach_mixture=False),
    SkewedReverseKL(alpha=0.0, detach_mixture=False),
    GeneralizedJSD(beta=0.3),
]


def draw(rows: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(rows, width, generator=generator)).to(CUDA, dtype)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [151_665, 151_936])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_kernel_equals_float64(divergence: Divergence, dtype: torch.dtype, vocab: int, in_place: bool) -> None:
    rows = 6
    student, teacher = draw(rows, 151_936, dtype, 0), draw(rows, 152_064, dtype, 1)
    student[:, vocab:], teacher[:, vocab:] = 60.0, 60.0  # would dominate if they were let in
    log_q, log_p = student[:, :vocab].double().log_softmax(-1), teacher[:, :vocab].double().log_softmax(-1)
    uniform = torch.rand(rows, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(CUDA)
    gradient = student if in_place else torch.full(student.shape, torch.nan, device=CUDA)
    found = kernels.kernel_divergence(
        divergence=divergence,
        student_logits=student,
        teacher_logits=teacher,
        vocab_size=vocab,
        uniform=uniform,
        gradient=gradient,
    )
    value, expected = divergence.value_and_grad(teacher_logp=log_p, student_logp=log_q)
    torch.testing.assert_close(found.divergence.double(), value, rtol=1e-4, atol=1e-5)
    rtol = 1e-2 if gradient.dtype == torch.bfloat16 else 1e-3
    torch.testing.assert_close(gradient[:, :vocab].double(), expected, rtol=rtol, atol=5e-6)
    assert not gradient[:, vocab:].any()

    drawn = found.student_proposal
    assert drawn is not None
    # bfloat16 logits may have ties; the first of the largest is meant.
    first = torch.where(log_q == log_q.amax(-1, keepdim=True), torch.arange(vocab, device=CUDA), vocab).amin(-1)
    probability = log_p.gather(1, first[:, None])[:, 0].exp()
    torch.testing.assert_close(found.teacher_prob_of_student_argmax.double(), probability, rtol=1e-4, atol=1e-9)
    # Sums in float32 may give a neighbour of what sums in float64 give where the number lies at a boundary.
    own = log_q.gather(1, drawn[:, None])[:, 0].exp()
    upto = log_q.exp().cumsum(-1).gather(1, drawn[:, None])[:, 0]
    assert (own > 0).all() and (upto > uniform - 1e-5).all() and (upto - own < uniform + 1e-5).all()


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("gap", [85.0, 92.0, 100.0, 110.0, 1e4])
def test_extreme_logits_give_numbers(divergence: Divergence, gap: float) -> None:
    student, teacher = draw(3, 5000, torch.float32, 0), draw(3, 5000, torch.float32, 1)
    student[0, 3] += gap
    teacher[1, 4] += gap
    student[2, 4097:] = teacher[2, 4097:] = -torch.inf
    log_q, log_p = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    gradient = torch.empty_like(student)
    found = kernels.kernel_divergence(
        divergence=divergence,
        student_logits=student,
        teacher_logits=teacher,
        vocab_size=5000,
        uniform=None,
        gradient=gradient,
    )
    value, expected = divergence.value_and_grad(teacher_logp=log_p, student_logp=log_q)
    torch.testing.assert_close(found.divergence.double(), value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-3, atol=1e-4)
