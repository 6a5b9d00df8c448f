"""The Triton kernel, in Triton's interpreter: which Triton decides on when it is imported, so in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vcrd_ray.method.divergences import SkewedKL
from vcrd_ray.method.fused import PerSequenceSkew, kernels


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_equals_the_torch_path_in_the_interpreter() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-x"),
            *("-o", "addopts="),  # the interpreter reads a kernel's source and finds no wrapper there
            str(Path(__file__).with_name("interpreted_kernels.py")),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:]


def test_what_the_kernel_does_not_know_goes_the_torch_way() -> None:
    assert not kernels.is_supported(SkewedKL(alpha=torch.full((2, 1), 0.1)))
    assert not kernels.is_supported(PerSequenceSkew(base=SkewedKL(alpha=0.1), alpha=torch.full((2,), 0.1)))
    assert not kernels.is_available(torch.device("cpu"))
    with pytest.raises(ValueError, match="contiguous along at least vocab_size 9"):
        kernels.kernel_divergence(
            divergence=SkewedKL(alpha=0.1),
            student_logits=torch.zeros(2, 8),
            teacher_logits=torch.zeros(2, 8),
            vocab_size=9,
            uniform=None,
            gradient=None,
        )
