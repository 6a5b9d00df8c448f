"""An objective of the config in numbers: divergences, strengths, skews, weights, and the factor of each row."""

import math

import numpy as np
import pytest
import torch

from vcrd_ray.config import objective
from vcrd_ray.method import divergences
from vcrd_ray.method.curricula import MixingState
from vcrd_ray.method.divergences import make_divergence
from vcrd_ray.method.fused import PerSequenceSkew
from vcrd_ray.method.loss import Denominators, Reduction, distillation_loss, lambdas, token_coefficients
from vcrd_ray.method.objective_state import ObjectiveState, is_adaptive, with_adaptive_skew
from vcrd_ray.method.weighting import (
    TeacherProbabilities,
    Weights,
    difference_weights,
    inverse_ratio_weights,
    ratio_weights,
    student_score_weights,
    teacher_prob_weights,
    token_weights,
)
from vcrd_ray.types import PairBatch, RolloutPair, ScoredProposals

SKL, SRKL = 0.06957796652381594, 0.07282753345876342


def pair(teacher: int, student: int) -> RolloutPair:
    one = np.ones(1, np.int32)
    return RolloutPair(
        id="x",
        question="q",
        prompt_ids=one,
        teacher_ids=np.ones(teacher, np.int32),
        student_ids=np.ones(student, np.int32),
    )


def coefficients(batch: PairBatch, reduction: Reduction, *, whole: list[RolloutPair] | None = None) -> np.ndarray:
    pairs = whole or list(batch.pairs)
    return token_coefficients(
        batch.layout,
        lambdas=(2.0, 1.5),
        reduction=reduction,
        denominators=Denominators(
            pairs=len(pairs),
            teacher_tokens=sum(len(p.teacher_ids) for p in pairs),
            student_tokens=sum(len(p.student_ids) for p in pairs),
        ),
    )


@pytest.mark.parametrize(("reduction", "loss"), [("sequence_mean", 0.21540665396217282), ("sum", 0.509668336651337)])
def test_toy_example_equals_the_golden_loss(reduction: Reduction, loss: float) -> None:
    batch = PairBatch(update=0, micro=0, pairs=(pair(3, 2),))
    token_divergences = torch.tensor([SKL, 0, SKL, SRKL, SRKL], requires_grad=True)
    weights, factors = np.array([1.2, 1.0, 0.5, 2.0, 0.5], np.float32), coefficients(batch, reduction)
    found = distillation_loss(token_divergences, weights=weights, coefficients=factors)
    assert float(found.detach()) == pytest.approx(loss, rel=1e-6)
    found.backward()  # type: ignore[no-untyped-call]
    assert token_divergences.grad is not None
    assert token_divergences.grad.tolist() == pytest.approx((weights * factors).tolist())


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sequence_mean", [2 / 6, 2 / 6, 2 / 6, 2 / 2, 1.5 / 2, 1.5 / 8, 1.5 / 8, 1.5 / 8, 1.5 / 8]),
        ("sum", [2 / 2] * 4 + [1.5 / 2] * 5),
        ("global_token_mean", [2 / 4] * 4 + [1.5 / 5] * 5),
    ],
)
def test_denominators_count_pairs_and_tokens(reduction: Reduction, expected: list[float]) -> None:
    batch = PairBatch(update=0, micro=0, pairs=(pair(3, 1), pair(1, 4)))
    assert coefficients(batch, reduction).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("reduction", ["sequence_mean", "sum", "global_token_mean"])
def test_micro_batches_add_up_to_the_whole_batch(reduction: Reduction) -> None:
    pairs = [pair(3, 2), pair(1, 7), pair(4, 4), pair(2, 1)]
    whole = PairBatch(update=0, micro=0, pairs=tuple(pairs))
    halves = [PairBatch(update=0, micro=m, pairs=tuple(pairs[2 * m : 2 * m + 2])) for m in (0, 1)]
    value = {True: 0.3, False: 0.7}

    def loss(batch: PairBatch) -> float:
        factor = coefficients(batch, reduction, whole=pairs)
        return float(sum(f * value[bool(t)] for f, t in zip(factor, batch.layout.is_teacher, strict=True)))

    assert loss(halves[0]) + loss(halves[1]) == pytest.approx(loss(whole), rel=1e-6)


def test_rows_are_ordered_teacher_first_then_student() -> None:
    rows = PairBatch(update=0, micro=0, pairs=(pair(2, 1), pair(1, 2))).layout
    assert rows.is_teacher.tolist() == [True, True, True, False, False, False]
    assert rows.pair.tolist() == [0, 0, 1, 0, 1, 1]
    assert rows.position.tolist() == [0, 1, 0, 0, 0, 1]
    assert rows.sequence_lengths.tolist() == [2, 2, 1, 1, 2, 2]


FORWARD = divergences.SkewedKL(alpha=0.0)
REVERSE = divergences.SkewedReverseKL(alpha=0.0, detach_mixture=False)


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (objective.ForwardKL(), FORWARD),
        (objective.CrossEntropy(), FORWARD),
        (objective.ReverseKL(), REVERSE),
        (objective.Jsd(beta=0.0), FORWARD),
        (objective.Jsd(beta=1.0), REVERSE),
        (objective.Jsd(beta=0.9), divergences.GeneralizedJSD(beta=0.9)),
        (objective.SkewedKL(alpha=0.3), divergences.SkewedKL(alpha=0.3)),
        (objective.SkewedReverseKL(alpha=0.3), divergences.SkewedReverseKL(alpha=0.3, detach_mixture=True)),
        (
            objective.SkewedReverseKL(alpha=0.3, detach_mixture=False),
            divergences.SkewedReverseKL(alpha=0.3, detach_mixture=False),
        ),
        (objective.AlphaBeta(alpha=0.3, beta=0.4), divergences.AlphaBeta(alpha=0.3, beta=0.4)),
        (objective.AdaptiveKL(head_mass=0.4), divergences.AdaptiveKL(head_mass=0.4)),
        (objective.Taid(start=0.1), divergences.InterpolatedTarget(t=0.6)),
        (
            objective.Amid(alpha=-0.5, share=0.2, order="rq", kind="kl", exponents=(0.3, 0.4)),
            divergences.AlphaMixture(alpha=-0.5, share=0.2, order="rq", kind="kl", exponents=(0.3, 0.4)),
        ),
    ],
    ids=repr,
)
def test_a_section_makes_the_divergence_that_it_names(
    section: objective.DivergenceSection, expected: divergences.Divergence
) -> None:
    assert make_divergence(section, taid_t=0.6) == expected


def test_only_taid_learns_from_the_loss_and_on_either_side() -> None:
    assert ObjectiveState.initial(objective.ObjectiveSection()) == ObjectiveState()
    mixing = objective.ObjectiveSection(mixing=objective.AdaptiveMixing(start=0.25))
    assert ObjectiveState.initial(mixing) == ObjectiveState(mixing=MixingState(threshold=0.25))
    same = ObjectiveState(anchors=(0.1, 0.2))
    assert same.after_update(objective.ObjectiveSection(), loss=1.0, progress=0.5) is same
    schedule = objective.Taid(start=0.2, end=0.9, rate=0.1, momentum=0.5)
    for section in (objective.ObjectiveSection(on_teacher=schedule), objective.ObjectiveSection(on_student=schedule)):
        first = ObjectiveState.initial(section)
        assert first.taid is not None and first.taid.t == 0.2
        second = first.after_update(section, loss=2.0, progress=0.01).after_update(section, loss=1.0, progress=0.02)
        assert second.taid is not None
        # Both steps beyond the linear schedule: by sigmoid(0) = 1/2, then by sigmoid(m), m = 1/2 * (2 - 1) / 2.
        t = 0.2 + 0.1 * 0.5 * 0.8
        assert second.taid.t == pytest.approx(t + 0.1 / (1 + math.exp(-0.25)) * (1 - t), abs=1e-12)
        assert second.taid.change == pytest.approx(0.25) and second.taid.previous_loss == 1.0


def test_gradual_strengths_move_from_the_teacher_s_prefixes_to_the_student_s() -> None:
    section = objective.ObjectiveSection(lambda_teacher=2.0, lambda_student=1.5)
    assert lambdas(section, progress=0.25) == (2.0, 1.5)
    assert lambdas(section.model_copy(update={"gradual": True}), progress=0.25) == (2.0 * 0.75, 1.5 * 1.25)


def test_an_adaptive_skew_repeats_each_sequence_s_alpha_over_its_rows() -> None:
    assert is_adaptive(objective.SkewedKL(adaptive=True)) and is_adaptive(objective.SkewedReverseKL(adaptive=True))
    assert not is_adaptive(objective.SkewedKL()) and not is_adaptive(objective.AlphaBeta())
    layout = PairBatch(update=0, micro=0, pairs=(pair(2, 1), pair(0, 3), pair(1, 0), pair(3, 2))).layout
    base, advantage = divergences.SkewedKL(alpha=0.1), np.array([0.25, 0.5, 0.28], np.float32)
    assert with_adaptive_skew(base, advantage, layout, "teacher", ObjectiveState()) is base
    low, high, between = 0.01, 0.1, 0.03574872325988365
    for side, anchors, expected in (
        ("teacher", (0.3, 9.0), [low] * 2 + [high] + [between] * 3),
        ("student", (9.0, 0.3), [low] + [high] * 3 + [between] * 2),
    ):
        found = with_adaptive_skew(base, advantage, layout, side, ObjectiveState(anchors=anchors))  # type: ignore[arg-type]
        assert isinstance(found, PerSequenceSkew) and found.base is base
        assert found.alpha.tolist() == pytest.approx(expected, abs=1e-6)


JUDGED = ScoredProposals(
    teacher_proposal=np.array([5, 5, 0, 7], np.int32),
    student_proposal=np.array([6, 6, 6, 7], np.int32),
    teacher_logit=np.array([-3.0, 1.0, 0.0, 2.0], np.float32),
    student_logit=np.array([2.0, -1.0, 4.0, 2.0], np.float32),
)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (objective.RatioWeighting(eps=1e-3, w_max=5.0), ratio_weights(JUDGED, special_ids=[0], eps=1e-3, w_max=5.0)),
        (
            objective.InverseRatioWeighting(eps=1e-3, w_max=5.0),
            inverse_ratio_weights(JUDGED, special_ids=[0], eps=1e-3, w_max=5.0),
        ),
        (objective.StudentScoreWeighting(), student_score_weights(JUDGED, special_ids=[0])),
        (objective.DifferenceWeighting(), difference_weights(JUDGED, special_ids=[0], shifted=False)),
        (objective.DifferenceWeighting(shifted=True), difference_weights(JUDGED, special_ids=[0], shifted=True)),
    ],
)
def test_a_judged_rule_is_the_one_that_the_config_names(rule: objective.Weighting, expected: Weights) -> None:
    found = token_weights(rule, scored=JUDGED, teacher_probabilities=None, num_tokens=4, special_ids=[0])
    for name in ("weight", "judged", "clipped", "invalid"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()


def test_rules_without_a_judge_read_the_teacher_alone() -> None:
    joined = [np.array(a, np.float32) for a in ([0.7, 0.2, 0.1], [0.54, 0.5, 0.9])]
    known = TeacherProbabilities(of_student_argmax=joined[0], collision=joined[1])
    rule = objective.TeacherProbWeighting(gamma=0.25, clamp=1.5, eps=1e-3)
    found = token_weights(rule, scored=None, teacher_probabilities=known, num_tokens=3, special_ids=[])
    expected = teacher_prob_weights(*joined, gamma=0.25, clamp=1.5, eps=1e-3)
    assert found.weight.tolist() == expected.weight.tolist()
    uniform = token_weights(
        objective.UniformWeighting(), scored=None, teacher_probabilities=None, num_tokens=3, special_ids=[]
    )
    assert uniform.weight.tolist() == [1, 1, 1]
