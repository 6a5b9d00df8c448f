"""That annotations are checked at all: a wrong shape is no silent broadcast in any unit test."""

from __future__ import annotations

import jaxtyping
import pytest
import torch

from vcrd_ray.method.divergences import SkewedKL
from vcrd_ray.method.loss import distillation_loss


def test_a_wrong_shape_or_type_is_found() -> None:
    logp = torch.log_softmax(torch.randn(3, 5), dim=-1)
    with pytest.raises(jaxtyping.TypeCheckError):
        SkewedKL(alpha=0.1).value(teacher_logp=logp, student_logp=logp[:2])
    with pytest.raises(jaxtyping.TypeCheckError):
        distillation_loss(logp, weights=None, coefficients=None)  # type: ignore[arg-type]
