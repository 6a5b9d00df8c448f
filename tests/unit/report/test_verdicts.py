"""Shares of the loss by the judge's verdict, by hand."""

import math

import pytest

from vcrd_ray.report.verdicts import verdicts
from vcrd_ray.types import Decision


def decision(teacher: float, student: float, weight: float, divergence: float, length: int) -> Decision:
    return Decision(
        update=0, pair="p", side="teacher", position=0, length=length, teacher_token=5, student_token=6,
        teacher_score=teacher, student_score=student, weight=weight, divergence=divergence, sampled=True,
    )  # fmt: skip


def test_shares_count_divergence_over_length() -> None:
    found = {
        v.name: v
        for v in verdicts(
            [
                decision(0.9, 0.1, 0.1, divergence=2.0, length=10),  # 0.2, weighted 0.02
                decision(0.9, 0.5, 0.5, divergence=1.0, length=10),  # 0.1, weighted 0.05
                decision(0.1, 0.9, 9.0, divergence=0.4, length=40),  # 0.01, weighted 0.09
                decision(0.9, 0.2, 0.3, divergence=0.9, length=10),  # 0.09, weighted 0.027
            ]
        )
    }
    teacher_only = found["only the teacher's valid"]
    assert teacher_only.share == 0.5 and teacher_only.divergence_share == pytest.approx(0.29 / 0.4)
    assert teacher_only.weighted_share == pytest.approx(0.047 / 0.187)
    assert teacher_only.weight == pytest.approx(0.047 / 0.29)
    assert found["only the student's valid"].weight == pytest.approx(9)
    assert found["both valid"].weighted_share == pytest.approx(0.05 / 0.187)
    assert found["neither valid"].share == 0 and math.isnan(found["neither valid"].weight)


def test_no_decisions_have_no_shares() -> None:
    assert [v.share for v in verdicts([])] == [0, 0, 0, 0]
