"""The parts that compute, on a CUDA device against the CPU: `make test-gpu` on a machine that has one."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import STUDENT, TEACHER
from vcrd_ray.config.models import ValueHeadJudgeSection
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.judges.requests import judge_request
from vcrd_ray.method.divergences import SkewedKL, SkewedReverseKL
from vcrd_ray.method.fused import HiddenTeacher, fused_divergence
from vcrd_ray.models.wire import from_wire
from vcrd_ray.types import PairBatch, RolloutPair, TeacherRequest

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("divergence", [SkewedKL(alpha=0.1), SkewedReverseKL(alpha=0.1, detach_mixture=True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_loss_equals_the_cpu(divergence: SkewedKL | SkewedReverseKL, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shapes = {
        "student_hidden": (64, 48),
        "student_head": (5000, 48),
        "teacher_hidden": (64, 96),
        "teacher_head": (5100, 96),
    }
    given = {name: torch.randn(shape).to(dtype) / 4 for name, shape in shapes.items()}
    results = []
    for device in (CPU, CUDA):
        moved = {name: tensor.to(device) for name, tensor in given.items()}
        moved["student_hidden"].requires_grad_()
        rows = fused_divergence(
            divergence=divergence,
            student_hidden=moved["student_hidden"],
            student_head=moved["student_head"],
            teacher=HiddenTeacher(hidden=moved["teacher_hidden"], head=moved["teacher_head"]),
            vocab_size=4990,
            chunk_rows=16,
        ).divergence
        rows.sum().backward()
        results.append((rows.detach().cpu(), moved["student_hidden"].grad.float().cpu()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2 if dtype == torch.bfloat16 else 1e-3, atol=1e-3)


def test_teacher_signals_equal_the_cpu(pairs: list[RolloutPair]) -> None:
    batch = PairBatch(update=0, micro=0, pairs=tuple(pairs[:4]))
    request = TeacherRequest(transport="hidden", top_k=1, propose=True, seed=0)
    on_cpu, on_gpu = (HFEngine(TEACHER, dtype="float32", device=d).annotate(batch, request) for d in (CPU, CUDA))
    torch.testing.assert_close(
        from_wire(on_gpu.distribution.states, CPU), from_wire(on_cpu.distribution.states, CPU), rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    [("dense", "float32", 5e-3), ("flex", "float32", 5e-3), ("flex", "bfloat16", 0.2), ("two_stream", "bfloat16", 0.2)],
)
def test_packed_judging_on_the_gpu_equals_separate_judging(
    pairs: list[RolloutPair], attention: str, dtype: str, tolerance: float
) -> None:
    section = ValueHeadJudgeSection.model_validate({"gpus_per_replica": 1, "attention": attention, "dtype": dtype})
    judge = load_judge(section, policy=STUDENT)
    batch = PairBatch(update=0, micro=0, pairs=tuple(pairs[:4]))
    proposals = batch.layout.token_ids[: batch.layout.num_teacher_tokens].copy()
    proposals[::3] = 9
    assert judge.self_check(judge_request(batch, "teacher", proposals), num_branches=8, seed=0) < tolerance
