"""The Triton kernel against the plain torch path. Run by test_kernels.py with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from vcrd_ray.method.divergences import Divergence, GeneralizedJSD, SkewedKL, SkewedReverseKL
from vcrd_ray.method.fused import HiddenTeacher, LogitsTeacher, fused_divergence, kernels
from vcrd_ray.method.sampling import sample_rows

DIVERGENCES: list[Divergence] = [
    SkewedKL(alpha=0.1),
    SkewedKL(alpha=0.0),
    SkewedKL(alpha=1.0),
    SkewedReverseKL(alpha=0.1, detach_mixture=True),
    SkewedReverseKL(alpha=0.1, detach_mixture=False),
    SkewedReverseKL(alpha=0.0, detach_mixture=False),
    GeneralizedJSD(beta=0.3),
]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_BLOCK", 16)


def draw(rows: int, width: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))).to(dtype)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize(("vocab", "padding"), [(37, 3), (16, 0), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_gradient_and_signals(divergence: Divergence, vocab: int, padding: int, dtype: torch.dtype) -> None:
    student, teacher = draw(5, vocab + padding, 0, dtype), draw(5, vocab + padding + 1, 1, dtype)
    student[:, vocab:], teacher[:, vocab:] = 60.0, 60.0  # would dominate if they were let in
    gradient = torch.full((5, vocab + padding), torch.nan)
    uniform = torch.rand(5, generator=torch.Generator().manual_seed(2))
    found = kernels.kernel_divergence(
        divergence=divergence,
        student_logits=student,
        teacher_logits=teacher,
        vocab_size=vocab,
        uniform=uniform,
        gradient=gradient,
    )
    log_q, log_p = student[:, :vocab].double().log_softmax(-1), teacher[:, :vocab].double().log_softmax(-1)
    value, expected = divergence.value_and_grad(teacher_logp=log_p, student_logp=log_q)
    torch.testing.assert_close(found.divergence.double(), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[:, :vocab].double(), expected, rtol=1e-4, atol=1e-5)
    assert not gradient[:, vocab:].any()
    assert found.student_proposal is not None and found.student_proposal.equal(sample_rows(log_q, uniform.double()))
    probability = log_p.gather(1, log_q.argmax(-1)[:, None])[:, 0].exp()
    torch.testing.assert_close(found.teacher_prob_of_student_argmax.double(), probability, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_the_gradient_may_take_the_place_of_the_logits(divergence: Divergence) -> None:
    student, teacher = draw(3, 21, 0), draw(3, 21, 1)
    beside = torch.empty(3, 21)
    arguments = {"divergence": divergence, "teacher_logits": teacher, "vocab_size": 20, "uniform": None}
    kernels.kernel_divergence(**arguments, student_logits=student, gradient=beside)
    kernels.kernel_divergence(**arguments, student_logits=student, gradient=student)
    assert student.equal(beside)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_extreme_logits_give_numbers_wherever_the_torch_path_does(divergence: Divergence) -> None:
    student, teacher = draw(6, 40, 0), draw(6, 40, 1)
    student[0, 3], student[1, 4], teacher[2, 5], teacher[3, 6] = 1e4, -1e4, 1e4, -1e4
    student[4, 7] = teacher[4, 7] = -torch.inf  # a padding column on both sides
    student[5] = teacher[5] = torch.tensor([0.0] + [-1e4] * 39)
    gradient = torch.empty(6, 40)
    found = kernels.kernel_divergence(
        divergence=divergence,
        student_logits=student,
        teacher_logits=teacher,
        vocab_size=40,
        uniform=None,
        gradient=gradient,
    )
    value, expected = divergence.value_and_grad(
        teacher_logp=teacher.log_softmax(-1), student_logp=student.log_softmax(-1)
    )
    torch.testing.assert_close(found.divergence, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("gap", [92.0, 100.0])
def test_a_token_whose_probability_is_subnormal_on_one_side_gives_numbers(divergence: Divergence, gap: float) -> None:
    student, teacher = draw(2, 40, 0), draw(2, 40, 1)
    # In float32 exp(-88.7) is the smallest number with a finite inverse, exp(-103) the smallest at all.
    student[0, 3] += gap
    teacher[1, 4] += gap
    equal_to_float64(divergence, student, teacher)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
def test_an_offset_of_all_logits_changes_nothing(divergence: Divergence) -> None:
    equal_to_float64(divergence, draw(4, 40, 0) + 1e4, draw(4, 40, 1) - 1e4)


def test_rows_of_the_lowest_number_are_uniform() -> None:
    lowest = torch.full((1, 40), torch.finfo(torch.float32).min)
    equal_to_float64(SkewedKL(alpha=0.1), lowest, draw(1, 40, 1))


def equal_to_float64(divergence: Divergence, student: torch.Tensor, teacher: torch.Tensor) -> None:
    gradient = torch.empty_like(student)
    found = kernels.kernel_divergence(
        divergence=divergence,
        student_logits=student,
        teacher_logits=teacher,
        vocab_size=student.shape[1],
        uniform=None,
        gradient=gradient,
    )
    log_q, log_p = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    value, expected = divergence.value_and_grad(teacher_logp=log_p, student_logp=log_q)
    torch.testing.assert_close(found.divergence.double(), value, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_may_take_the_place_of_bfloat16_logits_with_padding() -> None:
    student, teacher = draw(3, 24, 0, torch.bfloat16), draw(3, 21, 1, torch.bfloat16)
    wide = torch.full((3, 50), torch.nan, dtype=torch.bfloat16)
    student[:, 20:] = 60.0
    wide[:, :24] = student  # rows of a wider tensor
    arguments = {"divergence": DIVERGENCES[0], "teacher_logits": teacher, "vocab_size": 20, "uniform": None}
    beside = torch.empty(3, 20)
    kernels.kernel_divergence(**arguments, student_logits=student, gradient=beside)
    kernels.kernel_divergence(**arguments, student_logits=wide[:, :24], gradient=wide[:, :24])
    torch.testing.assert_close(wide[:, :20].float(), beside, rtol=1e-2, atol=1e-6)
    assert not wide[:, 20:24].any() and wide[:, 24:].isnan().all()


def test_a_number_above_the_rounded_sum_gives_the_last_token_that_counts() -> None:
    student = torch.zeros(1, 40)
    student[0, 35:] = torch.tensor([-30.0, -30.0, -100.0, -200.0, -torch.inf])
    found = kernels.kernel_divergence(
        divergence=DIVERGENCES[0],
        student_logits=student,
        teacher_logits=student,
        vocab_size=40,
        uniform=torch.tensor([1 - 2.0**-53], dtype=torch.float64),  # 1 in float32
        gradient=None,
    )
    assert found.student_proposal is not None and found.student_proposal.item() == 34


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_loss_is_the_same_with_and_without_kernel(
    trained: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    shapes = {"student": (9, 6), "student_head": (24, 6), "teacher": (9, 8), "teacher_head": (27, 8)}
    given = {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    uniform = torch.rand(9, dtype=torch.float64)
    results = []
    for by_kernel in (True, False):
        if not by_kernel:
            monkeypatch.setattr(kernels, "is_available", lambda device: False)
        hidden = given["student"].clone().requires_grad_()
        head = given["student_head"].clone().requires_grad_(trained)
        rows = fused_divergence(
            divergence=DIVERGENCES[0],
            student_hidden=hidden,
            student_head=head,
            teacher=HiddenTeacher(hidden=given["teacher"], head=given["teacher_head"]),
            vocab_size=22,
            chunk_rows=4,
            uniform=uniform,
            teacher_probability_top_k=5,
        )
        rows.divergence.mul(torch.arange(9) / 9).sum().backward()
        results.append((rows, hidden.grad, head.grad))
    (ours, *our_gradients), (theirs, *their_gradients) = results
    for name in (
        "divergence",
        "teacher_prob_of_student_argmax",
        "teacher_collision",
    ):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-5)
    assert ours.student_proposal is not None and theirs.student_proposal is not None
    assert ours.student_proposal.equal(theirs.student_proposal)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-5)


def test_logits_of_the_teacher_may_come_as_they_are() -> None:
    hidden, head, logits = draw(4, 6, 0), draw(20, 6, 1), draw(4, 23, 2)
    rows = fused_divergence(
        divergence=DIVERGENCES[0],
        student_hidden=hidden,
        student_head=head,
        teacher=LogitsTeacher(logits=logits),
        vocab_size=20,
        chunk_rows=3,
    )
    dense = DIVERGENCES[0].value(
        teacher_logp=logits[:, :20].log_softmax(-1), student_logp=(hidden @ head.T).log_softmax(-1)
    )
    torch.testing.assert_close(rows.divergence, dense, rtol=1e-4, atol=1e-5)
