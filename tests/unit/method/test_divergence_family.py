"""The divergences of the baselines: golden values, identities, gradients three ways, and inputs at the edge."""

from __future__ import annotations

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
FKL, RKL = SkewedKL(alpha=0.0), SkewedReverseKL(alpha=0.0, detach_mixture=False)

GOLDEN: list[tuple[Divergence, float, list[float] | None]] = [
    (GeneralizedJSD(beta=0.1), 0.0076946876755979495, [-0.018018, 0.008932, 0.009085]),
    (GeneralizedJSD(beta=0.5), 0.021901178968493803, [-0.050848, 0.024187, 0.026661]),
    (GeneralizedJSD(beta=0.9), 0.008184755843138342, [-0.019016, 0.008515, 0.010500]),
    (AlphaBeta(alpha=0.2, beta=0.7), 0.10259065044353677, [-0.235179, 0.102590, 0.132589]),
    (AlphaBeta(alpha=0.5, beta=0.5), 0.08808676469764393, None),
    (AlphaBeta(alpha=1.0, beta=1e-9), 0.0851226019071285, [-0.2, 0.1, 0.1]),
    (AdaptiveKL(head_mass=0.5), 0.08857783809552675, None),
    (InterpolatedTarget(t=0.4), 0.9681961545893545, [-0.084489, 0.039361, 0.045128]),
    (AlphaMixture(alpha=0.5, share=0.5, order="pr", kind="kl"), 0.020893124533694594, None),
    (AlphaMixture(alpha=0.5, share=0.5, order="pr", kind="alpha_beta"), 0.025076451979339144, None),
]
BRANCHES = [
    AlphaBeta(alpha=a, beta=b)
    for a, b in ((0.2, 0.7), (1.5, -0.3), (-0.4, 1.2), (0.8, 0.0), (0.0, 0.6), (0.5, -0.5), (0.0, 0.0))
]
MIXTURES = [
    AlphaMixture(alpha=a, share=s, order=order, kind=kind)
    for a, s in ((0.5, 0.5), (-1.0, 0.1), (1.0, 0.3), (-3.0, 0.9), (0.5, 0.0), (0.5, 1.0))
    for order in ("pr", "qr", "rp", "rq")
    for kind in ("kl", "alpha_beta")
]
OTHERS = [GeneralizedJSD(beta=0.3), AdaptiveKL(head_mass=0.5), InterpolatedTarget(t=0.3)]
FAMILY: list[Divergence] = [*OTHERS, *BRANCHES, *MIXTURES]
BOUNDED: list[Divergence] = [*OTHERS[:1], BRANCHES[0], MIXTURES[0], MIXTURES[1], MIXTURES[8]]
"""Finite whatever the distributions."""


def draw(seed: int, rows: int, vocab: int, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocab, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize(("divergence", "value", "gradient"), GOLDEN, ids=repr)
def test_values_and_gradients_equal_the_golden_ones(
    divergence: Divergence, value: float, gradient: list[float] | None
) -> None:
    closed, grad = divergence.value_and_grad(teacher_logp=P, student_logp=Q)
    for found in (closed, divergence.value(teacher_logp=P, student_logp=Q)):
        assert found.item() == pytest.approx(value, abs=1e-6 if "1e-09" in repr(divergence) else 1e-12)
    if gradient is not None:
        assert grad[0].tolist() == pytest.approx(gradient, abs=1e-6)


def test_targets_mixtures_and_shares_equal_the_golden_ones() -> None:
    target = InterpolatedTarget(t=0.4).target(teacher_logp=P, student_logp=Q).exp()
    assert target[0].tolist() == pytest.approx([0.584489, 0.260639, 0.154872], abs=1e-6)
    mixture = MIXTURES[0].log_mixture(teacher_logp=P, student_logp=Q).exp()
    assert mixture[0].tolist() == pytest.approx([0.603682, 0.250348, 0.145971], abs=1e-6)
    arithmetic = AlphaMixture(alpha=-1.0, share=0.1, order="pr", kind="kl").log_mixture(teacher_logp=P, student_logp=Q)
    assert arithmetic.exp()[0].tolist() == pytest.approx([0.52, 0.29, 0.19], abs=1e-12)
    assert AdaptiveKL(head_mass=0.5).head_share(teacher_logp=P, student_logp=Q).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (AlphaBeta(alpha=1.0, beta=0.0), FKL),
        (AlphaBeta(alpha=0.0, beta=1.0), RKL),
        (AlphaMixture(alpha=-1.0, share=0.1, order="pr", kind="kl"), SkewedKL(alpha=0.1)),
        (AlphaMixture(alpha=-1.0, share=0.9, order="qr", kind="kl"), SkewedReverseKL(alpha=0.1, detach_mixture=False)),
    ],
)
def test_special_cases_are_the_divergences_they_should_be(left: Divergence, right: Divergence) -> None:
    teacher, student = (draw(seed, 5, 9, 2.0).log_softmax(-1) for seed in (0, 1))
    ours, theirs = (d.value_and_grad(teacher_logp=teacher, student_logp=student) for d in (left, right))
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-9, atol=1e-12)


def test_identities_between_divergences() -> None:
    teacher, student = (draw(seed, 5, 9, 2.0).log_softmax(-1) for seed in (0, 1))
    # The skewed divergences are the two terms of the generalised JSD.
    skl = SkewedKL(alpha=0.3).value(teacher_logp=teacher, student_logp=student)
    srkl = SkewedReverseKL(alpha=0.7, detach_mixture=False).value(teacher_logp=teacher, student_logp=student)
    jsd = GeneralizedJSD(beta=0.3).value(teacher_logp=teacher, student_logp=student)
    torch.testing.assert_close(jsd, 0.3 * skl + 0.7 * srkl)
    # Its limit for a small beta, and the symmetry of the alpha-beta divergence.
    small = GeneralizedJSD(beta=1e-7).value(teacher_logp=teacher, student_logp=student) / 1e-7
    torch.testing.assert_close(small, FKL.value(teacher_logp=teacher, student_logp=student), rtol=1e-4, atol=1e-6)
    for a, b in ((0.2, 0.7), (0.8, 0.0), (0.5, -0.5)):
        left = AlphaBeta(alpha=a, beta=b).value(teacher_logp=teacher, student_logp=student)
        right = AlphaBeta(alpha=b, beta=a).value(teacher_logp=student, student_logp=teacher)
        torch.testing.assert_close(left, right)
    # Every branch is the limit of the formula beside it.
    for (a, b), step, rtol in (
        ((0.8, 0.0), (0.0, 1e-6), 1e-4),
        ((0.0, 0.6), (1e-6, 0.0), 1e-4),
        ((0.5, -0.5), (0.0, 0.01), 0.01),
    ):
        exact, above, below = (
            AlphaBeta(alpha=a + k * step[0], beta=b + k * step[1]).value(teacher_logp=teacher, student_logp=student)
            for k in (0, 1, -1)
        )
        torch.testing.assert_close((above + below) / 2, exact, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1e-9), (1e-9, 1.0), (0.01, 0.9), (-1e-6, 0.5)])
def test_small_exponents_are_exact_in_single_precision(a: float, b: float) -> None:
    teacher, student = (draw(seed, 3, 20_000, 3.0).log_softmax(-1) for seed in (0, 1))
    divergence = AlphaBeta(alpha=a, beta=b)
    wanted = divergence.value_and_grad(teacher_logp=teacher, student_logp=student)
    found = divergence.value_and_grad(teacher_logp=teacher.float(), student_logp=student.float())
    for high, low in zip(wanted, found, strict=True):
        torch.testing.assert_close(low.double(), high, rtol=1e-4, atol=1e-6)
    nothing = divergence.value(teacher_logp=teacher.float(), student_logp=teacher.float())
    assert nothing.abs().max() < 1e-5


@pytest.mark.parametrize("divergence", FAMILY, ids=repr)
def test_no_value_and_no_gradient_is_ever_nan(divergence: Divergence) -> None:
    """Tokens without probability on one side: the value may be infinite, the gradient leaves such tokens out."""
    teacher = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.9, 0.1, 0.0, 0.0]]).log()
    student = torch.tensor([[0.5, 0.0, 0.5, 0.0], [0.8, 0.1, 0.1, 0.0]]).log()
    value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=student)
    dense = divergence.value(teacher_logp=teacher, student_logp=student)
    assert not value.isnan().any() and not dense.isnan().any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("divergence", FAMILY, ids=repr)
@given(seed=st.integers(0, 10_000), vocab=st.integers(1, 30), scale=st.sampled_from([0.1, 1.0, 5.0]))
@settings(max_examples=8, deadline=None)
def test_closed_form_equals_autograd(divergence: Divergence, seed: int, vocab: int, scale: float) -> None:
    z = draw(seed, 3, vocab, scale).requires_grad_()
    teacher = draw(seed + 1, 3, vocab, scale).log_softmax(-1)
    value = divergence.value(teacher_logp=teacher, student_logp=z.log_softmax(-1))
    (reference,) = torch.autograd.grad(value.sum() + 0 * z.sum(), z)
    closed, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=z.detach().log_softmax(-1))
    torch.testing.assert_close(closed, value.detach(), rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(gradient, reference, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-7)
    assert (closed > -1e-9).all()


@pytest.mark.parametrize(
    "divergence", [d for d in FAMILY if not isinstance(d, AdaptiveKL | InterpolatedTarget)], ids=repr
)
def test_gradients_equal_finite_differences(divergence: Divergence) -> None:
    """Where no part is a constant of the derivative."""
    teacher = draw(3, 2, 6, 1.0).log_softmax(-1)
    z = draw(4, 2, 6, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: divergence.value(teacher_logp=teacher, student_logp=x.log_softmax(-1)), z)


@pytest.mark.parametrize("divergence", [*OTHERS[:2], *BRANCHES, *MIXTURES], ids=repr)
def test_equal_distributions_have_no_divergence_and_no_gradient(divergence: Divergence) -> None:
    logp = draw(0, 4, 9, 1.0).log_softmax(-1)
    value, gradient = divergence.value_and_grad(teacher_logp=logp, student_logp=logp)
    assert value.abs().max() < 1e-9 and gradient.abs().max() < 1e-9


@pytest.mark.parametrize("divergence", FAMILY, ids=repr)
def test_padding_columns_change_nothing(divergence: Divergence) -> None:
    teacher, z = draw(1, 3, 7, 1.0).log_softmax(-1), draw(2, 3, 7, 1.0)
    value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=z.log_softmax(-1))
    padding = torch.full((3, 2), -math.inf, dtype=torch.float64)
    padded_value, padded_gradient = divergence.value_and_grad(
        teacher_logp=torch.cat([teacher, padding], -1), student_logp=torch.cat([z, padding], -1).log_softmax(-1)
    )
    torch.testing.assert_close(padded_value, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(padded_gradient[:, :7], gradient, rtol=1e-9, atol=1e-12)
    assert (padded_gradient[:, 7:] == 0).all()


@pytest.mark.parametrize("divergence", BOUNDED, ids=repr)
def test_extreme_logits_stay_finite(divergence: Divergence) -> None:
    teacher = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, -1e4]]).log_softmax(-1)
    student = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]]).log_softmax(-1)
    value, gradient = divergence.value_and_grad(teacher_logp=teacher, student_logp=student)
    assert torch.isfinite(value).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("base", [SkewedKL(alpha=0.5), SkewedReverseKL(alpha=0.5, detach_mixture=False)], ids=repr)
def test_a_skew_for_each_row_equals_rows_one_by_one(base: SkewedKL | SkewedReverseKL) -> None:
    import dataclasses

    alphas = [0.01, 0.1, 0.7]
    teacher, student = (draw(seed, 3, 9, 2.0).log_softmax(-1) for seed in (0, 1))
    together = dataclasses.replace(base, alpha=torch.tensor(alphas, dtype=torch.float64)[:, None])
    values, gradients = together.value_and_grad(teacher_logp=teacher, student_logp=student)
    torch.testing.assert_close(together.value(teacher_logp=teacher, student_logp=student), values)
    for row, alpha in enumerate(alphas):
        alone = dataclasses.replace(base, alpha=alpha)
        value, gradient = alone.value_and_grad(teacher_logp=teacher[row : row + 1], student_logp=student[row : row + 1])
        torch.testing.assert_close(values[row : row + 1], value)
        torch.testing.assert_close(gradients[row : row + 1], gradient)


def test_what_no_divergence_is_is_refused() -> None:
    with pytest.raises(ValueError, match=r"beta .* is outside"):
        GeneralizedJSD(beta=1.0)
    with pytest.raises(ValueError, match=r"head_mass .* is outside"):
        AdaptiveKL(head_mass=1.0)
    with pytest.raises(ValueError, match=r"add up to"):
        AlphaBeta(alpha=0.5, beta=-0.4999)
    with pytest.raises(ValueError, match=r"alpha .* is above 1"):
        AlphaMixture(alpha=1.5, share=0.5, order="pr", kind="kl")
