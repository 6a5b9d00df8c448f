"""The chunked loss against dense logits and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given as examples
from hypothesis import settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from vcrd_ray.method.divergences import Divergence, SkewedKL, SkewedReverseKL
from vcrd_ray.method.fused import FusedTokens, HiddenTeacher, fused_divergence
from vcrd_ray.method.sampling import sample_rows

N, DS, DT, VOCAB = 13, 6, 9, 21
DIVERGENCES: list[Divergence] = [
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


def fused(divergence: Divergence, given: dict[str, torch.Tensor], **changes: Any) -> FusedTokens:
    options = {"vocab_size": VOCAB, "chunk_rows": 4, "uniform": None, "teacher_probability_top_k": None}
    teacher = HiddenTeacher(hidden=given["teacher_hidden"], head=given["teacher_head"])
    student = {name: tensor for name, tensor in given.items() if name.startswith("student")}
    return fused_divergence(divergence=divergence, **student, **({"teacher": teacher} | options | changes))


def dense(divergence: Divergence, given: dict[str, torch.Tensor], vocab: int = VOCAB) -> torch.Tensor:
    student = torch.log_softmax(given["student_hidden"] @ given["student_head"][:vocab].T, -1)
    teacher = torch.log_softmax(given["teacher_hidden"] @ given["teacher_head"][:vocab].T, -1)
    return divergence.value(teacher_logp=teacher, student_logp=student)


@examples(
    seed=st.integers(0, 1000),
    n=st.integers(0, 9),
    vocab=st.integers(1, 30),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    chunk_rows=st.integers(1, 10),
    trained=st.booleans(),
    divergence=st.sampled_from(DIVERGENCES),
)
@settings(deadline=None, max_examples=60)
def test_any_shape_equals_dense_autograd(
    seed: int, n: int, vocab: int, padding: tuple[int, int], chunk_rows: int, trained: bool, divergence: Divergence
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    given = {
        "student_hidden": draw(n, 3).requires_grad_(),
        "student_head": torch.cat([draw(vocab, 3), torch.full((padding[0], 3), 50.0)]).requires_grad_(trained),
        "teacher_hidden": draw(n, 5),
        "teacher_head": torch.cat([draw(vocab, 5), torch.full((padding[1], 5), 50.0)]),
    }
    factor = draw(n)
    rows = fused(divergence, given, vocab_size=vocab, chunk_rows=chunk_rows).divergence
    reference = dense(divergence, given, vocab)
    torch.testing.assert_close(rows, reference)
    wanted = [given["student_hidden"], *([given["student_head"]] if trained else [])]
    ours, theirs = (torch.autograd.grad((factor * r).sum(), wanted) for r in (rows, reference))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-7)


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
    given["student_hidden"].requires_grad_()
    uniform = torch.rand(N, dtype=torch.float64)
    one = fused(DIVERGENCES[0], given, uniform=uniform, teacher_probability_top_k=5)
    other = fused(DIVERGENCES[0], given, uniform=uniform, teacher_probability_top_k=5, chunk_rows=chunk_rows)
    torch.testing.assert_close(one.divergence, other.divergence, rtol=1e-12, atol=1e-14)
    assert one.student_proposal is not None and other.student_proposal is not None
    assert one.student_proposal.equal(other.student_proposal)
    torch.testing.assert_close(one.teacher_prob_of_student_argmax, other.teacher_prob_of_student_argmax)
    torch.testing.assert_close(one.teacher_collision, other.teacher_collision)
    gradients = [torch.autograd.grad(r.divergence.sum(), given["student_hidden"])[0] for r in (one, other)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-13)


def test_a_row_does_not_depend_on_the_other_rows() -> None:
    given, kept = inputs(), [11, 2, 5]
    some = {name: tensor[kept] if name.endswith("hidden") else tensor for name, tensor in given.items()}
    whole, part = fused(DIVERGENCES[1], given), fused(DIVERGENCES[1], some)
    torch.testing.assert_close(part.divergence, whole.divergence[kept], rtol=1e-12, atol=1e-14)


def test_proposals_are_drawn_from_the_dense_student_distribution() -> None:
    given, uniform = inputs(), torch.rand(N, dtype=torch.float64)
    logp = torch.log_softmax(given["student_hidden"] @ given["student_head"][:VOCAB].T, -1)
    proposals = fused(DIVERGENCES[0], given, uniform=uniform).student_proposal
    assert proposals is not None and proposals.equal(sample_rows(logp, uniform))
    assert fused(DIVERGENCES[0], given).student_proposal is None


def test_weights_that_come_after_the_forward_pass_scale_the_gradient() -> None:
    given = inputs()
    hidden = given["student_hidden"].requires_grad_()
    rows = fused(DIVERGENCES[0], given).divergence
    (plain,) = torch.autograd.grad(rows.sum(), hidden, retain_graph=True)
    weight = torch.rand(N, dtype=torch.float64)
    weight[3] = 0
    (weighted,) = torch.autograd.grad((weight * rows).sum(), hidden)
    torch.testing.assert_close(weighted, weight[:, None] * plain)
    assert (weighted[3] == 0).all() and (plain[3] != 0).any()


def test_padding_rows_are_no_part_of_any_distribution() -> None:
    given = inputs()
    cut = given | {"student_head": given["student_head"][:VOCAB], "teacher_head": given["teacher_head"][:VOCAB]}
    assert fused(DIVERGENCES[0], given).divergence.equal(fused(DIVERGENCES[0], cut).divergence)
    drawn = fused(DIVERGENCES[0], given, uniform=torch.rand(N, dtype=torch.float64)).student_proposal
    assert drawn is not None and drawn.max() < VOCAB


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_inputs_are_computed_in_float32(divergence: Divergence) -> None:
    given = inputs(torch.bfloat16)
    exact = {name: tensor.double() for name, tensor in given.items()}
    for tensors in (given, exact):
        tensors["student_hidden"].requires_grad_()
        tensors["student_head"].requires_grad_()
    rows, reference = fused(divergence, given).divergence, dense(divergence, exact)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), reference, rtol=1e-4, atol=1e-6)
    rows.sum().backward()
    reference.sum().backward()
    for name in ("student_hidden", "student_head"):
        gradient, expected = given[name].grad, exact[name].grad
        assert gradient is not None and expected is not None and gradient.dtype == torch.bfloat16
        # A gradient has the dtype of its tensor: equal up to that one rounding, half a unit of the eighth bit.
        torch.testing.assert_close(gradient.double(), expected, rtol=2.0**-8 + 1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_a_bfloat16_head_gives_what_its_float32_copy_gives(trained: bool) -> None:
    """Over more tokens than are converted at a time."""
    torch.manual_seed(1)
    n, vocab = 5, 20_011
    shapes = {
        "student_hidden": (n, 4),
        "student_head": (vocab, 4),
        "teacher_hidden": (n, 4),
        "teacher_head": (vocab, 4),
    }
    given = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    given |= {name: tensor.float() for name, tensor in given.items() if name.endswith("hidden")}
    copied = {name: tensor.float() for name, tensor in given.items()}
    rows, gradients = [], []
    for tensors in (given, copied):
        hidden = tensors["student_hidden"].requires_grad_()
        tensors["student_head"].requires_grad_(trained)
        rows.append(fused(DIVERGENCES[0], tensors, vocab_size=vocab).divergence)
        gradients.append(torch.autograd.grad(rows[-1].sum(), hidden)[0])
    torch.testing.assert_close(*rows, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("trained", "sizes"),
    [(False, [N * DS]), (True, [N * DS, (VOCAB + 3) * DS])],
)
def test_nothing_the_size_of_the_logits_is_kept_for_the_backward_pass(trained: bool, sizes: list[int]) -> None:
    given = inputs()
    given["student_hidden"].requires_grad_()
    given["student_head"].requires_grad_(trained)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused(DIVERGENCES[0], given)
    assert kept == sizes


class _LargestTensor(TorchDispatchMode):
    """Sees the result of every operation, also inside an autograd function."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("trained", [False, True])
def test_logits_of_all_rows_exist_in_neither_pass(divergence: Divergence, trained: bool) -> None:
    torch.manual_seed(0)
    n, vocab, chunk_rows = 64, 50, 8
    given = {
        "student_hidden": torch.randn(n, 4, requires_grad=True),
        "student_head": torch.randn(vocab, 4, requires_grad=trained),
        "teacher_hidden": torch.randn(n, 4),
        "teacher_head": torch.randn(vocab, 4),
    }
    with _LargestTensor() as largest:
        fused(divergence, given, vocab_size=vocab, chunk_rows=chunk_rows).divergence.sum().backward()
    assert given["student_hidden"].grad is not None
    assert largest.numel == chunk_rows * vocab


class _ValueOnly:
    """A divergence whose gradient must not be asked for."""

    def value(self, *, teacher_logp: torch.Tensor, student_logp: torch.Tensor) -> torch.Tensor:
        return DIVERGENCES[0].value(teacher_logp=teacher_logp, student_logp=student_logp)

    def value_and_grad(
        self, *, teacher_logp: torch.Tensor, student_logp: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("a gradient was computed")


def test_no_gradient_is_computed_where_none_is_wanted() -> None:
    given = inputs()
    torch.testing.assert_close(fused(_ValueOnly(), given).divergence, dense(DIVERGENCES[0], given))
    given["student_hidden"].requires_grad_()
    with torch.no_grad():
        assert not fused(_ValueOnly(), given).divergence.requires_grad
    with pytest.raises(AssertionError, match="a gradient was computed"):
        fused(_ValueOnly(), given)


def test_a_derivative_through_the_backward_pass_is_refused() -> None:
    given = inputs()
    hidden, factor = given["student_hidden"].requires_grad_(), torch.ones(N, dtype=torch.float64, requires_grad=True)
    loss = (factor * fused(DIVERGENCES[0], given).divergence).sum()
    (first,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_teacher_signals_equal_dense_ones() -> None:
    given = inputs()
    rows = fused(DIVERGENCES[0], given, teacher_probability_top_k=4)
    teacher = torch.softmax(given["teacher_hidden"] @ given["teacher_head"][:VOCAB].T, -1)
    student = given["student_hidden"] @ given["student_head"][:VOCAB].T
    torch.testing.assert_close(
        rows.teacher_prob_of_student_argmax, teacher.gather(1, student.argmax(-1)[:, None])[:, 0]
    )
    torch.testing.assert_close(rows.teacher_collision, teacher.topk(4).values.square().sum(-1))


def test_a_head_smaller_than_the_vocabulary_is_refused() -> None:
    given = inputs()
    with pytest.raises(ValueError, match="student's head covers 5 tokens"):
        fused(DIVERGENCES[0], given | {"student_head": given["student_head"][:5]})


def test_tokens_that_do_not_match_are_refused(unchecked: None) -> None:
    """Nine teacher tokens would leave a chunk of one, which broadcasting would spread over four."""
    given = inputs()
    with pytest.raises(ValueError, match="student_hidden has 13 tokens, teacher_hidden 9"):
        fused(DIVERGENCES[0], given | {"teacher_hidden": given["teacher_hidden"][:9]})
    with pytest.raises(ValueError, match="student_hidden has 13 tokens, uniform 12"):
        fused(DIVERGENCES[0], given, uniform=torch.rand(12))
