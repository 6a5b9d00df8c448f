"""Weights: golden values, exactness at ties, bounds, judges that answer nonsense."""

import numpy as np
import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from vcrd_ray.method.weighting import inverse_ratio_weights, ratio_weights, teacher_prob_weights, uniform_weights
from vcrd_ray.types import ScoredProposals

EOS = 0


def validity(teacher_logit: list[float], student_logit: list[float], same: bool = False) -> ScoredProposals:
    n = len(teacher_logit)
    return ScoredProposals(
        teacher_proposal=np.full(n, 5, np.int32),
        student_proposal=np.full(n, 5 if same else 6, np.int32),
        teacher_logit=np.array(teacher_logit, np.float32),
        student_logit=np.array(student_logit, np.float32),
    )


def logit(score: float) -> float:
    return float(np.log(score) - np.log1p(-score))


def weights(v: ScoredProposals, w_max: float = 10.0, eps: float = 1e-8) -> np.ndarray:
    return ratio_weights(v, special_ids={EOS}, eps=eps, w_max=w_max).weight


def test_ratio_of_scores_equals_the_golden_one() -> None:
    assert weights(validity([0.5], [1.2]))[0] == pytest.approx(1.2346586076050161, rel=1e-6)


def test_published_pairs_give_their_published_ratios() -> None:
    published = [
        (0.085, 0.589, 6.97),
        (0.152, 0.847, 5.57),
        (0.575, 0.801, 1.39),
        (0.601, 0.877, 1.46),
        (0.36, 0.827, 2.3),
    ]
    v = validity([logit(t) for t, _, _ in published], [logit(s) for _, s, _ in published])
    assert weights(v).tolist() == pytest.approx([r for *_, r in published], abs=0.05)


def test_log_space_equals_direct_division_where_that_is_exact() -> None:
    rng = np.random.default_rng(0)
    t, s = rng.normal(size=(2, 200)) * 3
    direct = (1 / (1 + np.exp(-s))) / (1 / (1 + np.exp(-t)) + 1e-8)
    np.testing.assert_allclose(weights(validity(list(t), list(s)), w_max=np.inf), direct, rtol=2e-6)


def test_equal_proposals_weigh_exactly_one_whatever_the_scores() -> None:
    given = ratio_weights(validity([-9.0, np.nan], [4.0, 2.0], same=True), special_ids={EOS}, eps=1e-8, w_max=10)
    assert given.weight.tolist() == [1.0, 1.0] and not given.judged.any() and not given.invalid.any()


def test_special_tokens_weigh_exactly_one() -> None:
    v = ScoredProposals(
        teacher_proposal=np.array([EOS, 5], np.int32),
        student_proposal=np.array([6, EOS], np.int32),
        teacher_logit=np.zeros(2, np.float32),
        student_logit=np.full(2, 3, np.float32),
    )
    assert weights(v).tolist() == [1.0, 1.0]


def test_tiny_teacher_score_reaches_the_bound_and_is_counted() -> None:
    given = ratio_weights(validity([logit(1e-6)], [2.0]), special_ids=set(), eps=1e-8, w_max=10)
    assert given.weight[0] == 10 and given.clipped.all() and given.judged.all()


@examples(teacher=st.floats(-30, 30, width=32), student=st.floats(-30, 30, width=32))
def test_the_students_score_stands_above_the_teachers(teacher: float, student: float) -> None:
    one = weights(validity([teacher], [student]), w_max=np.inf, eps=0.0)[0]
    swapped = weights(validity([student], [teacher]), w_max=np.inf, eps=0.0)[0]
    assert one * swapped == pytest.approx(1, rel=1e-6)
    v = validity([teacher], [student])
    assert inverse_ratio_weights(v, special_ids={EOS}, eps=0.0, w_max=np.inf).weight[0] == swapped
    # Far up both scores are 1 to the last digit.
    assert (one >= 1) if student >= teacher else (one <= 1)


def test_without_bound_only_eps_limits_the_ratio() -> None:
    assert weights(validity([-100.0], [100.0]), w_max=np.inf)[0] == pytest.approx(1e8, rel=1e-5)
    assert weights(validity([-50.0], [-50.0]), w_max=np.inf, eps=0.0)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_weigh_one_and_are_counted(bad: float) -> None:
    given = ratio_weights(validity([bad, 0.0], [0.0, 0.0]), special_ids=set(), eps=1e-8, w_max=10)
    assert given.weight[0] == 1.0 and given.invalid.tolist() == [True, False] and given.judged.tolist() == [False, True]


@pytest.mark.parametrize(
    ("p", "index", "k", "expected"),
    [
        ([0.7, 0.2, 0.1], 0, 128, 1.1385500745644919),
        ([0.7, 0.2, 0.1], 1, 128, 0.6085806138151789),
        ([0.7, 0.2, 0.1], 2, 128, 0.5),
        ([0.5, 0.25, 0.25], 0, 128, 1.1547005229832445),
        ([1 / 16] * 16, 3, 128, 0.9999999200000097),
        ([0.7, 0.2, 0.1], 0, 2, 1.149240919938562),
        ([0.97, 0.02, 0.01], 1, 128, 0.5),
    ],
)
def test_prm_free_weights_equal_the_golden_ones(p: list[float], index: int, k: int, expected: float) -> None:
    collision = sum(x * x for x in sorted(p, reverse=True)[:k])
    given = teacher_prob_weights(
        np.array([p[index]], np.float64), np.array([collision], np.float64), gamma=0.5, clamp=2.0, eps=1e-8
    )
    assert given.weight[0] == pytest.approx(expected, rel=1e-6)


def test_eps_adds_to_what_the_teacher_expects_of_itself() -> None:
    given = teacher_prob_weights(np.array([0.8]), np.array([0.75]), gamma=0.5, clamp=2.0, eps=0.5)
    assert given.weight[0] == pytest.approx(0.8, rel=1e-6) and not given.clipped.any()  # sqrt(0.8 / 1.25)


def test_zero_teacher_probability_gets_the_lower_bound() -> None:
    given = teacher_prob_weights(np.zeros(1, np.float32), np.ones(1, np.float32), gamma=0.5, clamp=2.0, eps=1e-8)
    assert given.weight[0] == 0.5 and given.clipped.all()


def test_uniform_weights_are_one() -> None:
    assert uniform_weights(3).weight.tolist() == [1, 1, 1]
