"""The weighting rules beside the ratio: by hand, at ties, at special tokens, and where a judge answers nonsense."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.unit.method.test_weighting import EOS, logit, validity
from vcrd_ray.method.weighting import (
    Weights,
    chosen_weights,
    difference_weights,
    inverse_ratio_weights,
    ratio_weights,
    student_score_weights,
    uniform_weights,
)
from vcrd_ray.types import ScoredProposals

SPECIAL = {EOS}
SCORES = [(0.8, 0.2), (0.25, 0.5), (0.1, 0.9)]  # teacher's, student's


def scored(same: bool = False) -> ScoredProposals:
    return validity([logit(t) for t, _ in SCORES], [logit(s) for _, s in SCORES], same)


def rules(v: ScoredProposals) -> dict[str, Weights]:
    return {
        "ratio": ratio_weights(v, special_ids=SPECIAL, eps=0, w_max=math.inf),
        "inverse": inverse_ratio_weights(v, special_ids=SPECIAL, eps=0, w_max=math.inf),
        "student": student_score_weights(v, special_ids=SPECIAL),
        "difference": difference_weights(v, special_ids=SPECIAL, shifted=False),
        "shifted": difference_weights(v, special_ids=SPECIAL, shifted=True),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ratio", [0.25, 2.0, 9.0]),
        ("inverse", [4.0, 0.5, 1 / 9]),
        ("student", [0.2, 0.5, 0.9]),
        ("difference", [-0.6, 0.25, 0.8]),
        ("shifted", [0.4, 1.25, 1.8]),
    ],
)
def test_rules_by_hand(name: str, expected: list[float]) -> None:
    found = rules(scored())[name]
    assert found.weight.tolist() == pytest.approx(expected, rel=1e-5) and found.judged.all()


def test_equal_proposals() -> None:
    v = scored(same=True)
    v = ScoredProposals(
        teacher_proposal=v.teacher_proposal,
        student_proposal=v.student_proposal,
        teacher_logit=v.student_logit,  # one token, one score
        student_logit=v.student_logit,
    )
    found = {name: weights.weight.tolist() for name, weights in rules(v).items()}
    assert found["ratio"] == found["inverse"] == found["shifted"] == [1, 1, 1] and found["difference"] == [0, 0, 0]
    assert found["student"] == pytest.approx([0.2, 0.5, 0.9], rel=1e-5)


def test_a_bound_of_one_switches_amplification_off_and_an_infinite_one_clips_nothing() -> None:
    capped = ratio_weights(scored(), special_ids=SPECIAL, eps=0, w_max=1.0)
    assert capped.weight.tolist() == pytest.approx([0.25, 1.0, 1.0]) and capped.clipped.tolist() == [False, True, True]
    far = validity([-60.0], [60.0])
    free = ratio_weights(far, special_ids=SPECIAL, eps=0, w_max=math.inf)
    assert free.weight[0] == pytest.approx(math.exp(60), rel=1e-3) and not free.clipped.any()


def test_two_rules_by_row() -> None:
    rule = rules(scored())
    where = np.array([True, False, True])
    found = chosen_weights(where, rule["ratio"], rule["student"])
    assert found.weight.tolist() == pytest.approx([0.25, 0.5, 9.0], rel=1e-5)
    assert chosen_weights(where, rule["ratio"], uniform_weights(3)).judged.tolist() == [True, False, True]


def test_an_unbounded_ratio_to_nothing_is_no_weight() -> None:
    v = validity([-95.0, 0.0], [2.0, 0.0])
    found = ratio_weights(v, special_ids=SPECIAL, eps=0, w_max=math.inf)
    assert found.weight.tolist() == [1.0, 1.0] and found.invalid.tolist() == [True, False]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_special_tokens_and_answers_that_are_no_numbers_weigh_one(broken: float) -> None:
    v = scored()
    tokens = v.student_proposal.copy()
    tokens[0] = EOS
    logits = v.student_logit.copy()
    logits[1] = broken
    changed = ScoredProposals(
        teacher_proposal=v.teacher_proposal,
        student_proposal=tokens,
        teacher_logit=v.teacher_logit,
        student_logit=logits,
    )
    for found in rules(changed).values():
        assert found.weight[:2].tolist() == [1, 1] and found.judged.tolist() == [False, False, True]
        assert found.invalid.tolist() == [False, True, False]
        assert np.isfinite(found.weight).all()
