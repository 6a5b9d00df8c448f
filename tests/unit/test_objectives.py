"""The factor of each row: the paper's toy example, and what must not change the loss."""

import numpy as np
import pytest

from vcrd_ray.objectives import Reduction, row_coefficients
from vcrd_ray.types import PairBatch, RolloutPair

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
    return row_coefficients(
        batch.rows,
        lambda_teacher=2.0,
        lambda_student=1.5,
        reduction=reduction,
        num_pairs=len(pairs),
        num_teacher_tokens=sum(len(p.teacher_ids) for p in pairs),
        num_student_tokens=sum(len(p.student_ids) for p in pairs),
    )


@pytest.mark.parametrize(("reduction", "loss"), [("sequence_mean", 0.21540665396217282), ("sum", 0.509668336651337)])
def test_toy_example_equals_the_golden_loss(reduction: Reduction, loss: float) -> None:
    batch = PairBatch(update=0, micro=0, pairs=(pair(3, 2),))
    divergence = np.array([SKL, 0, SKL, SRKL, SRKL])
    weight = np.array([1.2, 1.0, 0.5, 2.0, 0.5])
    assert (coefficients(batch, reduction) * weight * divergence).sum() == pytest.approx(loss, rel=1e-6)


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
        return float(sum(f * value[bool(t)] for f, t in zip(factor, batch.rows.is_teacher, strict=True)))

    assert loss(halves[0]) + loss(halves[1]) == pytest.approx(loss(whole), rel=1e-6)


def test_rows_are_ordered_teacher_first_then_student() -> None:
    rows = PairBatch(update=0, micro=0, pairs=(pair(2, 1), pair(1, 2))).rows
    assert rows.is_teacher.tolist() == [True, True, True, False, False, False]
    assert rows.pair.tolist() == [0, 0, 1, 0, 1, 1]
    assert rows.position.tolist() == [0, 1, 0, 0, 0, 1]
    assert rows.sequence_lengths.tolist() == [2, 2, 1, 1, 2, 2]
