"""How rows become a loss: the constant factor of each row. Pure; knows no divergence and no weight."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vcrd_ray.types import FloatArray, RowLayout

Reduction = Literal["sequence_mean", "sum", "global_token_mean"]


def row_coefficients(
    layout: RowLayout,
    *,
    lambda_teacher: float,
    lambda_student: float,
    reduction: Reduction,
    num_pairs: int,
    num_teacher_tokens: int,
    num_student_tokens: int,
) -> FloatArray:
    """What w_t d_t of each row is multiplied with, so that the sum over all rows of an update is its loss. [N]

    The counts are over the whole update, all ranks and micro-batches. No denominator contains weights: dividing by
    their sum would undo amplification.

        sequence_mean      lambda / (response length * pairs)
        sum                lambda / pairs                        (eq. 3 of the paper)
        global_token_mean  lambda / response tokens of that side
    """
    strength = np.where(layout.is_teacher, lambda_teacher, lambda_student)
    if reduction == "sequence_mean":
        denominator = layout.sequence_lengths.astype(np.float64) * num_pairs
    elif reduction == "sum":
        denominator = np.full(layout.num_rows, float(num_pairs))
    else:
        denominator = np.where(layout.is_teacher, float(num_teacher_tokens), float(num_student_tokens))
    return (strength / denominator).astype(np.float32)
