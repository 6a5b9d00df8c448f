"""The chunked loss against dense logits and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vcrd_ray.divergences import Divergence, SkewedKL, SkewedReverseKL
from vcrd_ray.fused import FusedRows, fused_divergence

N, DS, DT, VOCAB = 13, 6, 9, 21
DIVERGENCES = [
    SkewedKL(alpha=0.1),
    SkewedReverseKL(alpha=0.1, detach_mixture=True),
    SkewedReverseKL(alpha=0.1, detach_mixture=False),
]


def inputs(dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    student_head = torch.randn(VOCAB + 3, DS, dtype=torch.float64)
    teacher_head = torch.randn(VOCAB + 7, DT, dtype=torch.float64)
    # Padding rows that would dominate every softmax if they were let in.
    student_head[VOCAB:] = 50.0
    teacher_head[VOCAB:] = 50.0
    made = {
        "student_hidden": torch.randn(N, DS, dtype=torch.float64),
        "student_head": student_head,
        "teacher_hidden": torch.randn(N, DT, dtype=torch.float64),
        "teacher_head": teacher_head,
    }
    return {name: tensor.to(dtype) for name, tensor in made.items()}


def fused(divergence: Divergence, given: dict[str, torch.Tensor], **changes: Any) -> FusedRows:
    options = {"vocab_size": VOCAB, "chunk_rows": 4, "uniform": None, "teacher_probability_top_k": None}
    return fused_divergence(divergence=divergence, **given, **(options | changes))


def dense(divergence: Divergence, given: dict[str, torch.Tensor]) -> torch.Tensor:
    student = torch.log_softmax(given["student_hidden"] @ given["student_head"][:VOCAB].T, -1)
    teacher = torch.log_softmax(given["teacher_hidden"] @ given["teacher_head"][:VOCAB].T, -1)
    return divergence.value(teacher_logp=teacher, student_logp=student)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("trained", [(), ("student_head",)])
def test_value_and_gradients_equal_dense_autograd(divergence: Divergence, trained: tuple[str, ...]) -> None:
    given = inputs()
    wanted = ("student_hidden", *trained)
    for name in wanted:
        given[name].requires_grad_()
    factor = torch.randn(N, dtype=torch.float64)
    rows, reference = fused(divergence, given).divergence, dense(divergence, given)
    torch.testing.assert_close(rows, reference)
    ours = torch.autograd.grad((factor * rows).sum(), [given[n] for n in wanted])
    theirs = torch.autograd.grad((factor * reference).sum(), [given[n] for n in wanted])
    for name, left, right in zip(wanted, ours, theirs, strict=True):
        torch.testing.assert_close(left, right, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("divergence", [DIVERGENCES[0], DIVERGENCES[2]])
def test_gradcheck_passes(divergence: Divergence) -> None:
    given = inputs()

    def function(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return fused(divergence, given | {"student_hidden": hidden, "student_head": head}).divergence

    # Heads without padding: rows that no token reads have no gradient, and gradcheck would perturb them for nothing.
    given["student_head"] = given["student_head"][:VOCAB]
    arguments = [given["student_hidden"].requires_grad_(), given["student_head"].requires_grad_()]
    assert torch.autograd.gradcheck(function, arguments)


@pytest.mark.parametrize("chunk_rows", [1, 5, 13, 100])
def test_chunk_size_changes_nothing(chunk_rows: int) -> None:
    given = inputs()
    uniform = torch.rand(N, dtype=torch.float64)
    one = fused(DIVERGENCES[0], given, uniform=uniform, teacher_probability_top_k=5)
    other = fused(DIVERGENCES[0], given, uniform=uniform, teacher_probability_top_k=5, chunk_rows=chunk_rows)
    torch.testing.assert_close(one.divergence, other.divergence, rtol=1e-12, atol=1e-14)
    assert one.student_proposal is not None and other.student_proposal is not None
    assert one.student_proposal.equal(other.student_proposal)
    assert one.student_argmax.equal(other.student_argmax)
    torch.testing.assert_close(one.teacher_collision, other.teacher_collision)


def test_padding_rows_are_no_part_of_any_distribution() -> None:
    given = inputs()
    cut = given | {"student_head": given["student_head"][:VOCAB], "teacher_head": given["teacher_head"][:VOCAB]}
    assert fused(DIVERGENCES[0], given).divergence.equal(fused(DIVERGENCES[0], cut).divergence)
    assert fused(DIVERGENCES[0], given).student_argmax.max() < VOCAB


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_inputs_are_computed_in_float32(divergence: Divergence) -> None:
    given = inputs(torch.bfloat16)
    exact = {name: tensor.double() for name, tensor in given.items()}
    rows = fused(divergence, given).divergence
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), dense(divergence, exact), rtol=1e-4, atol=1e-5)


def test_only_rows_of_hidden_size_are_kept_for_the_backward_pass_of_a_frozen_head() -> None:
    given = inputs()
    given["student_hidden"].requires_grad_()
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused(DIVERGENCES[0], given)
    assert kept == [N * DS]


def test_teacher_signals_equal_dense_ones() -> None:
    given = inputs()
    rows = fused(DIVERGENCES[0], given, teacher_probability_top_k=4)
    teacher = torch.softmax(given["teacher_hidden"] @ given["teacher_head"][:VOCAB].T, -1)
    student = given["student_hidden"] @ given["student_head"][:VOCAB].T
    assert rows.student_argmax.equal(student.argmax(-1))
    torch.testing.assert_close(
        rows.teacher_prob_of_student_argmax, teacher.gather(1, student.argmax(-1)[:, None])[:, 0]
    )
    torch.testing.assert_close(rows.teacher_collision, teacher.topk(4).values.square().sum(-1))


def test_a_head_smaller_than_the_vocabulary_is_refused() -> None:
    given = inputs()
    with pytest.raises(ValueError, match="student's head has 5 rows"):
        fused(DIVERGENCES[0], given | {"student_head": given["student_head"][:5]})
