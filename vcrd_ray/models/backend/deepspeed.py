"""DeepSpeed in one rank of a process group. Imports DeepSpeed only where it is used."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TypeVar, cast

import torch

from vcrd_ray.config.stages import OptimSection, TrainingSection
from vcrd_ray.errors import CheckpointError
from vcrd_ray.models.backend.optimizer import make_optimizer, random_state, restore_random_state
from vcrd_ray.models.backend.protocol import Backend
from vcrd_ray.models.batching import ResponseBatch
from vcrd_ray.models.imports import hidden
from vcrd_ray.models.merging import CastLoss
from vcrd_ray.models.student import Student

T = TypeVar("T")


def import_deepspeed() -> ModuleType:
    """The first import of DeepSpeed in a process."""
    with hidden("mlflow"):
        import deepspeed
    return cast(ModuleType, deepspeed)


def use_cpu_accelerator() -> None:
    """Tell DeepSpeed that this process trains on the CPU; must precede its import."""
    os.environ["DS_ACCELERATOR"] = "cpu"


class DeepSpeedBackend(Backend):
    """DeepSpeed in one rank of an initialised process group; ZeRO stages 0 to 3."""

    def __init__(
        self,
        student: Student,
        optim: OptimSection,
        *,
        num_updates: int,
        num_micro: int,
        micro_batch_size: int,
        zero_stage: int,
    ) -> None:
        import deepspeed
        import torch.distributed as dist

        self.student = student.train()
        self._optim = optim
        self._num_micro = num_micro
        optimizer, scheduler = make_optimizer(student, optim, num_updates)
        self._engine, *_ = deepspeed.initialize(
            model=student,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": micro_batch_size,
                "gradient_accumulation_steps": num_micro,
                "gradient_clipping": optim.max_grad_norm,
                "bf16": {"enabled": next(student.parameters()).dtype == torch.bfloat16},
                "zero_optimization": {"stage": zero_stage},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "steps_per_print": 2**31,
            },
        )
        self._zero_stage = zero_stage
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def forward(self, batch: ResponseBatch, *, logits: bool = False) -> torch.Tensor:
        rows: torch.Tensor = self._engine(batch, logits=logits)
        return rows

    def backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed averages gradients over ranks; a share of a sum must not be averaged.
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)
        last = self._engine.is_gradient_accumulation_boundary()
        if last:
            self._last_lr = float(self._engine.get_lr()[0])
            if self._zero_stage == 0:
                # DeepSpeed keeps no norm at this stage. The gradients are summed over ranks by now.
                gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
                self._norm = float(torch.nn.utils.get_total_norm(gradients))
        self._engine.step()
        if last and self._zero_stage > 0:
            norm = float(self._engine.get_global_grad_norm())
            # Of a gradient that is NaN or infinite DeepSpeed says -1 or inf, depending on the stage.
            self._norm = norm if norm >= 0 else math.nan

    def step(self) -> tuple[float, float]:
        """The engine itself updates with the last backward of the window."""
        return self._norm, self._last_lr

    def save(self, directory: Path) -> None:
        self._engine.save_checkpoint(
            str(directory),
            tag="state",
            client_state={},
            save_latest=False,
            exclude_frozen_parameters=True,
        )
        torch.save(random_state(), directory / f"random-{self.rank}.pt")

    def load(self, directory: Path) -> None:
        loaded, _ = self._engine.load_checkpoint(str(directory), tag="state", load_module_strict=False)
        if loaded is None:
            raise CheckpointError(
                f"{directory}: DeepSpeed found no state in it; remove it to resume from the one before"
            )
        random = directory / f"random-{self.rank}.pt"
        if random.is_file():
            restore_random_state(torch.load(random, weights_only=True))
        else:
            # There are more ranks than then. The same stream after another restart.
            torch.manual_seed(zlib.crc32(f"{directory.name} {self.rank}".encode()))

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        import torch.distributed as dist

        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def export(self, directory: Path) -> CastLoss | None:
        return self._on_rank_0(lambda: self.student.export(directory))

    def write_version(self, directory: Path, *, merged: bool) -> None:
        self._on_rank_0(lambda: self.student.write_version(directory, merged=merged))

    def _on_rank_0(self, work: Callable[[], T]) -> T | None:
        """Do some work with whole parameters on one rank while the others wait; its result there."""
        import deepspeed
        import torch.distributed as dist

        parameters = list(self.student.parameters()) if self._zero_stage == 3 else []
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=self._zero_stage == 3):
            result = work() if self.rank == 0 else None
        dist.barrier()
        return result


def deepspeed_backend(
    student: Student, section: TrainingSection, *, num_updates: int, num_micro: int, zero_stage: int
) -> DeepSpeedBackend:
    """What trains a student on one rank of an initialised process group."""
    return DeepSpeedBackend(
        student,
        section.optim,
        num_updates=num_updates,
        num_micro=num_micro,
        micro_batch_size=section.micro_batch_size,
        zero_stage=zero_stage,
    )
