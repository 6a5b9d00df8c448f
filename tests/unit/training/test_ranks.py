"""Ranks in processes of their own, without Ray: two with DeepSpeed equal one with plain torch, at every ZeRO stage."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import make_pairs
from vcrd_ray.config import Config
from vcrd_ray.training.in_process import distil

pytestmark = pytest.mark.slow
NUM_PAIRS, NUM_UPDATES = 24, 3
STAGES = (0, 2, 3)


def config(**student: Any) -> Config:
    return Config.model_validate(
        {
            "student": student,
            "distill": {
                "batch_size": 8,
                "micro_batch_size": 2,
                "num_updates": NUM_UPDATES,
                "optim": {"lr": 1e-3},
                # Ranks draw dropout masks of their own: equality over ranks needs none.
                "lora": {"r": 4, "alpha": 16, "dropout": 0.0},
                # Stage 3 on several ranks runs one micro-batch after another (see Config).
                "overlap": student.get("zero_stage", 0) < 3,
                # Stage 0 divides by the tokens of all ranks, which each must know.
                "objective": {"reduction": "sequence_mean" if student.get("zero_stage") else "global_token_mean"},
            },
        }
    )


def run_rank(rank: int, folder: Path) -> None:
    """All stages, one after the other, as one of two ranks."""
    torch.set_num_threads(1)
    from vcrd_ray.engines.hf import HFEngine
    from vcrd_ray.judges.loading import load_judge
    from vcrd_ray.models.backend.deepspeed import deepspeed_backend, import_deepspeed, use_cpu_accelerator
    from vcrd_ray.models.batching import response_batch
    from vcrd_ray.models.checkpoint_files import pad_id
    from vcrd_ray.training import assemble
    from vcrd_ray.training.signals import LocalSignals
    from vcrd_ray.training.trainer import Trainer

    use_cpu_accelerator()
    os.environ["LOCAL_RANK"] = str(rank)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    import_deepspeed().init_distributed(dist_backend="gloo", verbose=False)
    pairs = make_pairs(NUM_PAIRS)
    for stage in STAGES:
        given = config(ranks=2, zero_stage=stage)
        student = assemble.student_to_distil(given, torch.device("cpu"))
        batches, backend = assemble.make_batches(
            given, pairs, student, partial(deepspeed_backend, zero_stage=stage), rank=rank, world_size=2
        )
        signals = LocalSignals(
            teacher=HFEngine(given.teacher.path, dtype="float32", device=torch.device("cpu")),
            judge=load_judge(given.judge, policy=given.student.path),
            request=assemble.make_teacher_request(given),
        )
        distiller = assemble.make_distiller(
            given,
            backend=backend,
            batches=batches,
            signals=signals,
            teacher=assemble.Teacher.of(given, student.tokenizer),
        )
        trainer = Trainer(loop=distiller, backend=backend, section=given.distill)
        trainer.run()
        backend.export(folder / str(stage))
        if rank == 0:
            rows = [(r.metrics["loss"], r.metrics["grad_norm"]) for r in trainer.reports]
            (folder / f"{stage}.json").write_text(json.dumps(rows))
        batch = response_batch(pairs[:2], pad_id(student.tokenizer), student.device)
        for _ in range(batches.order.num_micro_batches):
            # Of one rank alone, and all are told.
            backend.backward(backend.forward(batch).sum() * (float("nan") if rank == 1 else 1.0))
        (folder / f"{stage}-{rank}.norm").write_text(str(backend.step()[0]))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, args=(folder,), nprocs=2)
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_no_number_on_one_rank_is_none_on_all(two_ranks: Path, stage: int) -> None:
    norms = [float((two_ranks / f"{stage}-{rank}.norm").read_text()) for rank in (0, 1)]
    assert not any(map(math.isfinite, norms)), norms


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_equal_one_at_every_zero_stage(two_ranks: Path, tmp_path: Path, stage: int) -> None:
    # The objective of that stage, in one process and without DeepSpeed.
    one = distil(config(zero_stage=stage), make_pairs(NUM_PAIRS))
    found = json.loads((two_ranks / f"{stage}.json").read_text())
    for name, column in (("loss", 0), ("grad_norm", 1)):
        wanted = [report.metrics[name] for report in one.reports]
        assert [row[column] for row in found] == pytest.approx(wanted, rel=1e-4)
    one.student.export(tmp_path)
    ours, theirs = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (two_ranks / str(stage), tmp_path))
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-2, atol=3e-5)
