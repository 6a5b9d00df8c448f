"""The fused loss with each way of giving the teacher's distribution, and what else it says of the rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcrd_ray.method.divergences import (
    AlphaBeta,
    Divergence,
    GeneralizedJSD,
    InterpolatedTarget,
    SkewedKL,
    SkewedReverseKL,
)
from vcrd_ray.method.fused import (
    HiddenTeacher,
    LogitsTeacher,
    PerSequenceSkew,
    TeacherDistribution,
    TopKTeacher,
    fused_divergence,
    fused_token_logp,
)
from vcrd_ray.method.sampling import sample_rows

N, VOCAB = 11, 23
DIVERGENCES: list[Divergence] = [SkewedKL(alpha=0.1), SkewedReverseKL(alpha=0.1, detach_mixture=False)]
OTHERS: list[Divergence] = [GeneralizedJSD(beta=0.5), AlphaBeta(alpha=0.2, beta=0.7), InterpolatedTarget(t=0.4)]


class Case:
    """Random states and heads, padding rows behind both heads."""

    def __init__(self, seed: int = 0, trained: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, dtype=torch.float64, generator=generator)

        self.hidden = normal(N, 6).requires_grad_()
        self.head = torch.cat([normal(VOCAB, 6), torch.full((2, 6), 9.0, dtype=torch.float64)]).requires_grad_(trained)
        self.teacher = HiddenTeacher(hidden=normal(N, 5), head=normal(VOCAB + 4, 5))
        self.logits = self.teacher.hidden @ self.teacher.head.T
        self.logp = self.logits[:, :VOCAB].log_softmax(-1)
        self.student_logp = (self.hidden @ self.head[:VOCAB].T).log_softmax(-1)

    def top(self, k: int) -> TopKTeacher:
        found = self.logp.topk(k)
        return TopKTeacher(ids=found.indices, logp=found.values)

    def fused(
        self, divergence: Divergence | PerSequenceSkew, teacher: TeacherDistribution, **options: object
    ) -> torch.Tensor:
        return fused_divergence(
            divergence=divergence,
            student_hidden=self.hidden,
            student_head=self.head,
            teacher=teacher,
            vocab_size=VOCAB,
            chunk_rows=4,
            **options,  # type: ignore[arg-type]
        ).divergence

    def gradients(self, rows: torch.Tensor) -> list[torch.Tensor]:
        factor = torch.linspace(0.5, 2.0, N, dtype=torch.float64)
        leaves = [t for t in (self.hidden, self.head) if t.requires_grad]
        return list(torch.autograd.grad((factor * rows).sum(), leaves, retain_graph=True))


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize("trained", [False, True])
def test_logits_and_a_top_k_of_everything_are_exact(divergence: Divergence, trained: bool) -> None:
    case = Case(trained=trained)
    exact = case.fused(divergence, case.teacher)
    for teacher in (LogitsTeacher(logits=case.logits), case.top(VOCAB)):
        other = case.fused(divergence, teacher)
        torch.testing.assert_close(other, exact, rtol=1e-9, atol=1e-12)
        for ours, theirs in zip(case.gradients(other), case.gradients(exact), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("divergence", [*DIVERGENCES, *OTHERS], ids=repr)
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("k", [1, 5])
def test_a_top_k_equals_the_lumped_distributions_written_out(divergence: Divergence, trained: bool, k: int) -> None:
    case = Case(trained=trained)
    top = case.top(k)

    def lumped(logp: torch.Tensor) -> torch.Tensor:
        tail = logp.scatter(1, top.ids, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([logp.gather(1, top.ids), tail], 1)

    dense = divergence.value(teacher_logp=lumped(case.logp), student_logp=lumped(case.student_logp))
    rows = case.fused(divergence, top)
    torch.testing.assert_close(rows, dense, rtol=1e-8, atol=1e-10)
    for ours, theirs in zip(case.gradients(rows), case.gradients(dense), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


@given(seed=st.integers(0, 500), k=st.integers(1, VOCAB - 1), alpha=st.sampled_from([0.0, 0.1, 0.9]))
@settings(max_examples=40, deadline=None)
def test_lumping_the_tail_never_adds_divergence(seed: int, k: int, alpha: float) -> None:
    case = Case(seed)
    for divergence in (SkewedKL(alpha=alpha), SkewedReverseKL(alpha=alpha, detach_mixture=True)):
        with torch.no_grad():
            assert (case.fused(divergence, case.top(k)) <= case.fused(divergence, case.teacher) + 1e-9).all()


def test_lumped_values_equal_the_golden_ones() -> None:
    p, q = (torch.tensor([row], dtype=torch.float64).log() for row in ([0.7, 0.2, 0.1], [0.5, 0.3, 0.2]))
    for divergence, value in (
        (SkewedKL(alpha=0.1), 0.067075),
        (SkewedReverseKL(alpha=0.1, detach_mixture=True), 0.069401),
    ):
        rows = fused_divergence(
            divergence=divergence,
            student_hidden=q,
            student_head=torch.eye(3, dtype=torch.float64),
            teacher=TopKTeacher(ids=torch.tensor([[0]]), logp=p[:, :1]),
            vocab_size=3,
            chunk_rows=1,
        )
        assert rows.divergence.item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("trained", [False, True])
def test_one_certain_token_gives_the_cross_entropy(trained: bool) -> None:
    case = Case(trained=trained)
    tokens = torch.arange(N) * 7 % VOCAB
    certain = TopKTeacher(ids=tokens[:, None], logp=torch.zeros(N, 1))
    rows = case.fused(SkewedKL(alpha=0.0), certain)
    dense = torch.nn.functional.cross_entropy(case.hidden @ case.head[:VOCAB].T, tokens, reduction="none")
    torch.testing.assert_close(rows, dense, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(case.gradients(rows), case.gradients(dense), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("base", [SkewedKL(alpha=0.1), SkewedReverseKL(alpha=0.1, detach_mixture=True)], ids=repr)
def test_a_skew_for_each_sequence_equals_sequences_one_by_one(base: SkewedKL | SkewedReverseKL, trained: bool) -> None:
    case = Case(trained=trained)
    alpha = torch.tensor([0.05] * 3 + [0.1] * 7 + [0.02], dtype=torch.float64)
    together = case.fused(PerSequenceSkew(base=base, alpha=alpha), case.teacher)
    alone = torch.zeros(N, dtype=torch.float64)
    for value in (0.05, 0.1, 0.02):
        rows = case.fused(type(base)(**{**_fields(base), "alpha": value}), case.teacher)
        alone = torch.where(alpha == value, rows, alone)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(case.gradients(together), case.gradients(alone))


def _fields(divergence: SkewedKL | SkewedReverseKL) -> dict[str, object]:
    return {name: getattr(divergence, name) for name in divergence.__dataclass_fields__}


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
def test_token_log_probabilities_equal_dense_ones(chunk_rows: int) -> None:
    case = Case()
    tokens = torch.arange(2 * N).reshape(N, 2) % VOCAB
    logp = fused_token_logp(hidden=case.hidden, head=case.head, tokens=tokens, vocab_size=VOCAB, chunk_rows=chunk_rows)
    torch.testing.assert_close(logp, case.student_logp.gather(1, tokens).detach())
    assert not logp.requires_grad


def test_what_does_not_fit_is_refused() -> None:
    case = Case()
    with pytest.raises(ValueError, match="need the teacher's whole distribution, not its top-k"):
        case.fused(DIVERGENCES[0], case.top(3), teacher_probability_top_k=2)
    with pytest.raises(ValueError, match="student_hidden has 11 tokens, teacher logits 5"):
        case.fused(DIVERGENCES[0], LogitsTeacher(logits=case.logits[:5]))
    few = case.top(3)
    with pytest.raises(ValueError, match="student_hidden has 11 tokens, teacher top-k 9"):
        case.fused(DIVERGENCES[0], TopKTeacher(ids=few.ids[:9], logp=few.logp[:9]))
    with pytest.raises(ValueError, match="the teacher's logit matrix covers 4 tokens, fewer than vocab_size 23"):
        case.fused(DIVERGENCES[0], LogitsTeacher(logits=case.logits[:, :4]))


def test_with_a_top_k_the_student_still_proposes_of_every_token() -> None:
    case, uniform = Case(), torch.linspace(0.01, 0.99, N, dtype=torch.float64)
    found = fused_divergence(
        divergence=DIVERGENCES[0],
        student_hidden=case.hidden,
        student_head=case.head,
        teacher=case.top(2),
        vocab_size=VOCAB,
        chunk_rows=4,
        uniform=uniform,
    )
    logp = case.student_logp.detach()
    assert found.student_proposal is not None and found.student_proposal.equal(sample_rows(logp, uniform))


def test_a_top_k_may_come_in_any_order_and_in_the_types_that_travel() -> None:
    case = Case()
    top, order = case.top(5), torch.tensor([3, 0, 4, 1, 2])
    sent = TopKTeacher(ids=top.ids[:, order].int(), logp=top.logp[:, order].float())
    rows, exact = case.fused(DIVERGENCES[0], sent), case.fused(DIVERGENCES[0], top)
    torch.testing.assert_close(rows, exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(case.gradients(rows), case.gradients(exact), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", [*DIVERGENCES, *OTHERS], ids=repr)
def test_probabilities_that_add_up_to_more_than_one_by_rounding_leave_no_tail(divergence: Divergence) -> None:
    """Two halves that are a little too large; all that the student gives elsewhere is its own tail."""
    case = Case()
    ids = torch.tensor([[0, 1]]).expand(N, 2)
    rounded, halves = (torch.full((N, 2), p, dtype=torch.float64).log() for p in (0.5 + 1e-9, 0.5))
    rows, exact = (case.fused(divergence, TopKTeacher(ids=ids, logp=logp)) for logp in (rounded, halves))
    torch.testing.assert_close(rows, exact, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(case.gradients(rows), case.gradients(exact), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("kind", ["hidden", "logits", "top_k"])
def test_no_rows_give_no_values_and_no_gradient(kind: str, trained: bool) -> None:
    case = Case(trained=trained)
    top = case.top(3)
    teacher: TeacherDistribution = {
        "hidden": HiddenTeacher(hidden=case.teacher.hidden[:0], head=case.teacher.head),
        "logits": LogitsTeacher(logits=case.logits[:0]),
        "top_k": TopKTeacher(ids=top.ids[:0], logp=top.logp[:0]),
    }[kind]
    none = case.hidden.detach()[:0].requires_grad_()
    options = {"student_head": case.head, "teacher": teacher, "vocab_size": VOCAB, "chunk_rows": 4}
    found = fused_divergence(divergence=DIVERGENCES[0], student_hidden=none, uniform=none[:, 0], **options)  # type: ignore[arg-type]
    assert found.divergence.shape == (0,)
    assert found.student_proposal is not None and found.student_proposal.shape == (0,)
    found.divergence.sum().backward()
    assert none.grad is not None and none.grad.shape == none.shape
    assert case.head.grad is None or not case.head.grad.any()
    tokens = torch.zeros((0, 1), dtype=torch.int64)
    assert len(fused_token_logp(hidden=none, head=case.head, tokens=tokens, vocab_size=VOCAB, chunk_rows=4)) == 0


@pytest.mark.parametrize("kind", ["logits", "top_k"])
@pytest.mark.parametrize("divergence", [*DIVERGENCES, *OTHERS], ids=repr)
def test_a_frozen_bfloat16_head_is_computed_in_float32(kind: str, divergence: Divergence) -> None:
    case = Case()
    case.hidden = case.hidden.detach().bfloat16().requires_grad_()
    case.head = case.head.detach().bfloat16()
    teacher = LogitsTeacher(logits=case.logits.bfloat16()) if kind == "logits" else case.top(4)
    rows = case.fused(divergence, teacher)
    (gradient,) = case.gradients(rows)
    assert rows.dtype == torch.float32 and gradient.dtype == torch.bfloat16
    case.hidden, case.head = case.hidden.detach().double().requires_grad_(), case.head.double()
    exact = case.fused(divergence, teacher)
    torch.testing.assert_close(rows.double(), exact, rtol=1e-4, atol=1e-5)
    # Rounded to bfloat16 before and after the factor.
    torch.testing.assert_close(gradient.double(), case.gradients(exact)[0], rtol=2.0**-7, atol=1e-4)
