"""Values and gradients against numbers worked out by hand, autograd and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcrd_ray.method.divergences import (
    AdaptiveKL,
    AlphaBeta,
    AlphaMixture,
    Divergence,
    GeneralizedJSD,
    InterpolatedTarget,
    SkewedKL,
    SkewedReverseKL,
)

P = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
Q = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()

GOLDEN = [
    (SkewedKL(alpha=0.0), 0.0851228259572216, [-0.2, 0.1, 0.1]),
    (SkewedKL(alpha=0.1), 0.06957796652381594, [-0.16241274605612174, 0.07980699427614128, 0.08260575177998045]),
    (SkewedKL(alpha=0.5), 0.022730254805422394, None),
    (SkewedKL(alpha=0.9), 0.001002224996957771, None),
    (
        SkewedReverseKL(alpha=0.0, detach_mixture=False),
        0.09203285023383187,
        [-0.21425254342752237, 0.09402967736229971, 0.12022286606522269],
    ),
    (
        SkewedReverseKL(alpha=0.1, detach_mixture=False),
        0.07282753345876342,
        [-0.16892807993414893, 0.07709272581778744, 0.09183535411636147],
    ),
    (
        SkewedReverseKL(alpha=0.1, detach_mixture=True),
        0.07282753345876342,
        [-0.19015611660336207, 0.08515422314399065, 0.10500189345937141],
    ),
    (SkewedReverseKL(alpha=0.5, detach_mixture=True), 0.021072103131565212, None),
    (SkewedReverseKL(alpha=0.9, detach_mixture=True), 0.0008187678035737282, None),
]
ALL = [
    SkewedKL(alpha=0.0),
    SkewedKL(alpha=0.01),
    SkewedKL(alpha=0.5),
    SkewedKL(alpha=1.0),
    SkewedReverseKL(alpha=0.0, detach_mixture=False),
    SkewedReverseKL(alpha=0.1, detach_mixture=False),
    SkewedReverseKL(alpha=0.1, detach_mixture=True),
    SkewedReverseKL(alpha=1.0, detach_mixture=False),
]
PLANE = [(0.2, 0.7), (0.5, 0.5), (2.0, -0.5), (-0.5, 2.0), (-0.4, -0.3), (0.6, 0.0), (-0.6, 0.0), (0.0, 0.6)]
PLANE += [(0.0, -0.6), (0.5, -0.5), (-0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
"""Exponents of the alpha-beta divergence: all five branches, both signs of each exponent and of their sum."""
BOUNDED: list[Divergence] = [*ALL[1:3], *ALL[5:7], GeneralizedJSD(beta=0.3), AlphaBeta(alpha=0.2, beta=0.7)]
BOUNDED += [AlphaMixture(alpha=0.5, share=0.5, order="pr", kind=kind) for kind in ("kl", "alpha_beta")]
"""Finite whatever the distributions."""
SOFT: list[Divergence] = [*ALL, *BOUNDED[4:], AdaptiveKL(head_mass=0.5), InterpolatedTarget(t=0.3)]
SOFT += [AlphaMixture(alpha=1.0, share=0.3, order=order, kind="kl") for order in ("pr", "qr", "rp", "rq")]
"""Finite wherever logits are."""
WHOLE_PLANE = [AlphaBeta(alpha=a, beta=b) for a, b in PLANE]


@pytest.mark.parametrize(("divergence", "value", "gradient"), GOLDEN)
def test_values_and_gradients_equal_the_golden_ones(
    divergence: Divergence, value: float, gradient: list[float] | None
) -> None:
    closed, grad = divergence.value_and_grad(teacher_logp=P, student_logp=Q)
    dense = divergence.value(teacher_logp=P, student_logp=Q)
    assert closed.item() == pytest.approx(value, abs=1e-9)
    assert dense.item() == pytest.approx(value, abs=1e-9)
    if gradient is not None:
        assert grad[0].tolist() == pytest.approx(gradient, abs=1e-9)


def draw(seed: int, rows: int, vocab: int, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocab, dtype=torch.float64, generator=generator)


def by_definition(divergence: Divergence, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
    """The divergence as the paper writes it, from probabilities."""
    if isinstance(divergence, SkewedKL):
        mixture = divergence.alpha * teacher + (1 - divergence.alpha) * student
        return (teacher * (teacher / mixture).log()).sum(-1)
    assert isinstance(divergence, SkewedReverseKL)
    inside = student.detach() if divergence.detach_mixture else student
    mixture = (1 - divergence.alpha) * teacher + divergence.alpha * inside
    return (student * (student / mixture).log()).sum(-1)


@pytest.mark.parametrize("divergence", ALL)
def test_values_and_gradients_equal_the_definition(divergence: Divergence) -> None:
    z, teacher = draw(5, 4, 11, 2.0).requires_grad_(), torch.softmax(draw(6, 4, 11, 2.0), -1)
    reference = by_definition(divergence, teacher, torch.softmax(z, -1))
    (reference_gradient,) = torch.autograd.grad(reference.sum(), z)
    value, gradient = divergence.value_and_grad(
        teacher_logp=teacher.log(), student_logp=torch.log_softmax(z.detach(), -1)
    )
    torch.testing.assert_close(value, reference.detach(), rtol=1e-10, atol=1e-12)
    # The detached gradient of the definition holds a term q_i * 1 that sums to zero over a softmax: it is the same.
    torch.testing.assert_close(gradient, reference_gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("divergence", ALL)
@given(seed=st.integers(0, 10_000), vocab=st.integers(1, 40), scale=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
@settings(max_examples=25, deadline=None)
def test_closed_form_gradient_equals_autograd(divergence: Divergence, seed: int, vocab: int, scale: float) -> None:
    z = draw(seed, 3, vocab, scale).requires_grad_()
    teacher = torch.log_softmax(draw(seed + 1, 3, vocab, scale), -1)
    value = divergence.value(teacher_logp=teacher, student_logp=torch.log_softmax(z, -1))
    # At alpha 1 the mixture is the teacher alone and z is no part of the graph.
    (reference,) = torch.autograd.grad(value.sum() + 0 * z.sum(), z)
    student = torch.log_softmax(z.detach(), -1)
    closed, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=student)
    torch.testing.assert_close(closed, value.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, reference, rtol=1e-7, atol=1e-10)
    # A constant added to all logits changes nothing.
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (closed >= -1e-12).all()


@pytest.mark.parametrize("divergence", ALL)
def test_inputs_are_left_as_they_were(divergence: Divergence) -> None:
    teacher, student = (torch.log_softmax(draw(seed, 3, 7, 1.0), -1) for seed in (1, 2))
    before = teacher.clone(), student.clone()
    divergence.value_and_grad(teacher_logp=teacher, student_logp=student)
    divergence.value(teacher_logp=teacher, student_logp=student)
    assert teacher.equal(before[0]) and student.equal(before[1])


@pytest.mark.parametrize("divergence", ALL)
@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
def test_float32_keeps_the_value_and_the_gradient(divergence: Divergence, scale: float) -> None:
    # Both from the same float32 logits; the student near the teacher, where differences cancel most.
    teacher = torch.log_softmax(draw(1, 4, 5000, 3.0).float(), -1)
    student = torch.log_softmax(teacher + draw(2, 4, 5000, scale).float(), -1)
    value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=student)
    exact, exact_gradient = divergence.value_and_grad(teacher_logp=teacher.double(), student_logp=student.double())
    assert value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=3e-7)
    error = (gradient - exact_gradient).norm(dim=-1)
    assert (error <= 1e-4 * exact_gradient.norm(dim=-1) + 1e-7).all()


@pytest.mark.parametrize("divergence", ALL[1:4] + ALL[5:])
def test_zero_probabilities_give_finite_values_and_gradients(divergence: Divergence) -> None:
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    q = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    value, gradient = divergence.value_and_grad(teacher_logp=p, student_logp=q)
    assert torch.isfinite(gradient).all()
    assert value.item() == pytest.approx(divergence.value(teacher_logp=p, student_logp=q).item(), rel=1e-6)
    alpha = divergence.alpha  # type: ignore[attr-defined]
    assert 0 <= value.item() <= (math.log(1 / alpha) if alpha < 1 else 0) + 1e-6


@pytest.mark.parametrize("divergence", [*SOFT, *WHOLE_PLANE], ids=repr)
def test_columns_of_probability_zero_change_nothing(divergence: Divergence) -> None:
    teacher, z = torch.log_softmax(draw(1, 3, 7, 1.0), -1), draw(2, 3, 7, 1.0)
    padding = torch.full((3, 2), -math.inf, dtype=torch.float64)
    padded_teacher, padded_z = torch.cat([teacher, padding], -1), torch.cat([z, padding], -1).requires_grad_()
    value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=torch.log_softmax(z, -1))
    padded_value, padded_gradient = divergence.value_and_grad(
        teacher_logp=padded_teacher, student_logp=torch.log_softmax(padded_z.detach(), -1)
    )
    dense = divergence.value(teacher_logp=padded_teacher, student_logp=torch.log_softmax(padded_z, -1))
    (dense_gradient,) = torch.autograd.grad(dense.sum() + 0 * padded_z[:, :7].sum(), padded_z)
    for got in (padded_value, dense.detach()):
        torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-12)
    for got in (padded_gradient, dense_gradient):
        torch.testing.assert_close(got[:, :7], gradient, rtol=1e-9, atol=1e-12)
        assert (got[:, 7:] == 0).all()


@pytest.mark.parametrize("divergence", [ALL[0], ALL[4]])
def test_without_skew_a_missing_token_makes_the_value_infinite_and_no_gradient_nan(divergence: Divergence) -> None:
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0]]).log()
    q = torch.tensor([[0.0, 0.5, 0.5, 0.0]]).log()
    value, gradient = divergence.value_and_grad(teacher_logp=p, student_logp=q)
    assert value.item() == divergence.value(teacher_logp=p, student_logp=q).item() == math.inf
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("divergence", ALL)
def test_a_probability_below_the_smallest_float_counts_as_zero(divergence: Divergence) -> None:
    """exp(-200) is 0 in float32, and 0 times an infinite logarithm would be nan."""
    one, other = torch.tensor([[0.0, -200.0]]), torch.tensor([[0.0, -math.inf]])
    for teacher, student in ((one, other), (other, one)):
        value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=student)
        dense = divergence.value(teacher_logp=teacher, student_logp=student)
        assert value.item() == pytest.approx(0, abs=1e-7) and dense.item() == pytest.approx(0, abs=1e-7)
        assert gradient.abs().max() < 1e-7


@pytest.mark.parametrize("divergence", ALL)
def test_equal_distributions_have_no_divergence_and_no_gradient(divergence: Divergence) -> None:
    logp = torch.log_softmax(torch.randn(4, 9, dtype=torch.float64), -1)
    value, gradient = divergence.value_and_grad(teacher_logp=logp, student_logp=logp)
    assert value.abs().max() < 1e-12 and gradient.abs().max() < 1e-12


def test_alpha_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        SkewedKL(alpha=1.5)


class _ClosedForm(torch.autograd.Function):
    """Autograd's view of `value_and_grad`, for gradcheck."""

    @staticmethod
    def forward(ctx, z: torch.Tensor, teacher: torch.Tensor, divergence: Divergence) -> torch.Tensor:  # type: ignore[no-untyped-def]
        value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=z.log_softmax(-1))
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx, factor: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[no-untyped-def]
        return factor[:, None] * ctx.saved_tensors[0], None, None


@pytest.mark.parametrize(("alpha", "beta"), PLANE)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 3), vocab=st.integers(1, 20), scale=st.sampled_from([0.3, 2.0]))
@settings(max_examples=8, deadline=None)
def test_alpha_beta_equals_its_formula_everywhere_on_the_plane(
    alpha: float, beta: float, seed: int, rows: int, vocab: int, scale: float
) -> None:
    teacher, z = draw(seed, rows, vocab, scale).log_softmax(-1), draw(seed + 1, rows, vocab, scale).requires_grad_()
    p, q = teacher.exp(), z.softmax(-1)
    if alpha and beta and alpha + beta:
        both = alpha + beta
        terms = -(p**alpha * q**beta - alpha / both * p**both - beta / both * q**both) / (alpha * beta)
    elif alpha and not beta:
        terms = (p**alpha * (p**alpha / q**alpha).log() - p**alpha + q**alpha) / alpha**2
    elif beta and not alpha:
        terms = (q**beta * (q**beta / p**beta).log() - q**beta + p**beta) / beta**2
    elif alpha:
        terms = ((q**alpha / p**alpha).log() + p**alpha / q**alpha - 1) / alpha**2
    else:
        terms = (p.log() - q.log()) ** 2 / 2
    (reference,) = torch.autograd.grad(terms.sum(), z)
    divergence = AlphaBeta(alpha=alpha, beta=beta)
    value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=z.detach().log_softmax(-1))
    torch.testing.assert_close(value, terms.detach().sum(-1), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradient, reference, rtol=1e-7, atol=1e-9)
    assert (value >= -1e-10).all()


@pytest.mark.parametrize(
    "divergence",
    [d for d in SOFT if not getattr(d, "detach_mixture", False) and not isinstance(d, AdaptiveKL | InterpolatedTarget)]
    + WHOLE_PLANE,
    ids=repr,
)
def test_closed_form_gradient_equals_finite_differences_of_the_value(divergence: Divergence) -> None:
    z, teacher = draw(8, 2, 5, 1.0).requires_grad_(), draw(9, 2, 5, 1.0).log_softmax(-1)
    assert torch.autograd.gradcheck(lambda z: _ClosedForm.apply(z, teacher, divergence), z)


def test_parts_that_are_constants_of_the_derivative_stay_where_they_are() -> None:
    teacher, z = draw(3, 2, 6, 1.5).log_softmax(-1), draw(4, 2, 6, 1.5).requires_grad_()
    logp = z.log_softmax(-1)
    adaptive, interpolated = AdaptiveKL(head_mass=0.6), InterpolatedTarget(t=0.3)
    share = adaptive.head_share(teacher_logp=teacher, student_logp=logp.detach())
    assert ((share > 0) & (share < 1)).all()
    forward, reverse = (d.value(teacher_logp=teacher, student_logp=logp) for d in (ALL[0], ALL[4]))
    target = (0.3 * teacher + 0.7 * logp).softmax(-1).detach()
    for divergence, frozen in (
        (adaptive, share * forward + (1 - share) * reverse),
        (interpolated, -(target * logp).sum(-1)),
    ):
        value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=logp.detach())
        torch.testing.assert_close(value, frozen.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(frozen.sum(), z, retain_graph=True)[0])


@pytest.mark.parametrize(
    ("t", "value", "gradient"), [(0.0, 1.0296530140645737, [0, 0, 0]), (1.0, 0.8869413785005589, [-0.2, 0.1, 0.1])]
)
def test_an_interpolated_target_goes_from_the_student_to_the_teacher(
    t: float, value: float, gradient: list[float]
) -> None:
    found, grad = InterpolatedTarget(t=t).value_and_grad(teacher_logp=P, student_logp=Q)
    assert found.item() == pytest.approx(value, abs=1e-12) and grad[0].tolist() == pytest.approx(gradient, abs=1e-12)
    same, nothing = InterpolatedTarget(t=0.4).value_and_grad(teacher_logp=P, student_logp=P)
    assert same.item() == pytest.approx(0.8018185525433372, abs=1e-12) and nothing.abs().max() < 1e-15


def test_the_head_is_what_the_teacher_needs_for_its_mass_and_the_first_token_always() -> None:
    p, q = torch.tensor([[0.15, 0.5, 0.1, 0.25]]).log(), torch.tensor([[0.25, 0.2, 0.25, 0.3]]).log()
    # Gaps by falling p: 0.3, 0.05, 0.1, 0.15.
    for mass, share in ((0.3, 0.3 / 0.6), (0.8, 0.35 / 0.6), (0.95, 0.45 / 0.6)):
        assert AdaptiveKL(head_mass=mass).head_share(teacher_logp=p, student_logp=q).item() == pytest.approx(share)


@pytest.mark.parametrize("divergence", BOUNDED, ids=repr)
def test_a_probability_of_zero_is_the_limit_of_small_ones(divergence: Divergence) -> None:
    p, q = ([0.5, 0.4, 0.1, 0.0, 0.0], [0.3, 0.0, 0.2, 0.5, 0.0])
    z = torch.tensor([q], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([p], dtype=torch.float64).log()
    small = [torch.tensor([side], dtype=torch.float64).clamp_min(1e-300).log() for side in (p, q)]
    limit, _ = divergence.value_and_grad(teacher_logp=small[0], student_logp=small[1])
    value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=z.detach())
    dense = divergence.value(teacher_logp=teacher, student_logp=z.log_softmax(-1))
    (reference,) = torch.autograd.grad(dense.sum(), z)
    torch.testing.assert_close(value, limit)
    torch.testing.assert_close(dense.detach(), limit)
    torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)
    assert gradient[0, 1] == gradient[0, 4] == 0


@pytest.mark.parametrize("divergence", [ALL[0], ALL[4], AlphaBeta(alpha=1.0, beta=0.0), AlphaBeta(alpha=0.0, beta=1.0)])
def test_a_token_that_the_first_argument_excludes_adds_nothing(divergence: Divergence) -> None:
    one, other = ([0.5, 0.5, 0.0], [0.4, 0.4, 0.2])
    reverse = divergence in (ALL[4], AlphaBeta(alpha=0.0, beta=1.0))
    teacher, z = (torch.tensor([side]).log() for side in ((other, one) if reverse else (one, other)))
    z.requires_grad_()
    value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=z.detach().log_softmax(-1))
    dense = divergence.value(teacher_logp=teacher, student_logp=z.log_softmax(-1))
    assert value.item() == pytest.approx(math.log(1.25), abs=1e-6)
    assert dense.item() == pytest.approx(math.log(1.25), abs=1e-6)
    torch.testing.assert_close(gradient, torch.autograd.grad(dense.sum(), z)[0], rtol=1e-5, atol=1e-6)


def test_a_token_that_the_teacher_excludes_is_left_out_of_the_reverse_gradient() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.4, 0.4, 0.2]]).log()
    _, gradient = ALL[4].value_and_grad(teacher_logp=p, student_logp=q)
    ratio = math.log(0.8)
    assert gradient[0].tolist() == pytest.approx([0.4 * 0.2 * ratio] * 2 + [-0.2 * 0.8 * ratio], abs=1e-6)


@pytest.mark.parametrize("divergence", SOFT, ids=repr)
def test_wide_logits_give_in_float32_what_they_give_in_float64(divergence: Divergence) -> None:
    rough = [(30 * draw(seed, 4, 50, 1.0)).bfloat16() for seed in (1, 2)]
    far = [torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, -1e4]]), torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]])]
    for teacher, student in (rough, far):
        found, exact = (
            divergence.value_and_grad(
                teacher_logp=teacher.to(dtype).log_softmax(-1), student_logp=student.to(dtype).log_softmax(-1)
            )
            for dtype in (torch.float32, torch.float64)
        )
        torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[1].double(), exact[1], rtol=1e-4, atol=1e-5)
