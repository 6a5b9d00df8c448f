"""Bytes of weights, gradients and optimizer states against what DeepSpeed keeps: one rank, in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import os
import socket

import pytest

from vcrd_ray.config import Config
from vcrd_ray.config.base import DType
from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.config.plan import PlanSection
from vcrd_ray.planning.memory import total, training_items
from vcrd_ray.planning.shapes import read_shape

pytestmark = pytest.mark.slow
_PATH = "tiny:student-base"
_SLACK = 0.02
"""Share of the total that scalars, token ids and alignment take in a model this small."""


def _kept_bytes(dtype: DType, lora: LoraSection | None, stages: list[int], port: int) -> list[int]:
    """Storage of all tensors that a student, its gradients' master copies and its optimizer leave after two updates."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    import numpy as np
    import torch

    from vcrd_ray.models.backend.deepspeed import DeepSpeedBackend, use_cpu_accelerator
    from vcrd_ray.models.batching import batch_responses
    from vcrd_ray.models.student import Student

    use_cpu_accelerator()
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    ids = np.arange(5, 15)
    batch = batch_responses([ids], [ids], 0, torch.device("cpu"))

    def alive() -> dict[int, int]:
        gc.collect()
        storages = [o.untyped_storage() for o in gc.get_objects() if isinstance(o, torch.Tensor)]
        return {storage.data_ptr(): storage.nbytes() for storage in storages}

    kept = []
    for stage in stages:
        before = alive()
        section = StudentSection(path=_PATH, dtype=dtype, zero_stage=stage)
        student = Student(section, lora=lora, train_head=False, device=torch.device("cpu"), seed=0)
        backend = DeepSpeedBackend(
            student, Config().distill.optim, num_updates=4, num_micro=1, micro_batch_size=2, zero_stage=stage
        )
        for _ in range(2):
            backend.backward(backend.forward(batch).float().pow(2).sum())
            backend.step()
        kept.append(sum(size for pointer, size in alive().items() if pointer not in before))
    return kept


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.full
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LoraSection(r=4)], ids=["full", "lora"])
def test_deepspeed_keeps_between_updates_what_is_estimated(dtype: DType, lora: LoraSection | None) -> None:
    shape, stages = read_shape(_PATH, PlanSection()), [0, 1, 2]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        kept = pool.apply(_kept_bytes, (dtype, lora, stages, _free_port()))
    for stage, found in zip(stages, kept, strict=True):
        items = training_items(shape, dtype=dtype, zero=stage, ranks=1, lora=lora, train_head=False)
        # Gradients and the bucket that they are reduced in live from backward to step.
        stays = [item for item in items if "gradient" not in item.what]
        assert found == pytest.approx(total(stays), rel=_SLACK), f"stage {stage}"
