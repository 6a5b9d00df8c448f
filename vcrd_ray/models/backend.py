"""Gradient accumulation, optimizer and state on disk behind one small protocol: plain torch, or DeepSpeed.

Knows nothing of losses, judges or Ray. DeepSpeed is imported only where it is used.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from vcrd_ray.config import OptimSection
from vcrd_ray.errors import CheckpointError, ConfigError
from vcrd_ray.models.batching import ResponseBatch
from vcrd_ray.models.student import Student

_STATE_FILE = "state.pt"


class Backend(Protocol):
    """One rank of a training group.

    A loss given to `backward` is this micro-batch's share of the update's loss; the update follows the gradient of the
    *sum* of the shares over micro-batches and ranks. Backwards happen in the order of the forwards.
    """

    rank: int
    world_size: int
    student: Student

    def forward(self, batch: ResponseBatch, *, logits: bool = False) -> torch.Tensor:
        """`Student.forward` with gradient."""
        ...

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate gradients of one micro-batch."""
        ...

    def step(self) -> tuple[float, float]:
        """Clip, update, clear gradients. Returns (gradient norm before clipping, learning rate used)."""
        ...

    def save(self, directory: Path) -> None:
        """Write this rank's part of weights, optimizer, schedule and random state; all ranks call it."""
        ...

    def load(self, directory: Path) -> None:
        """Inverse of `save`. A rank that was not there then draws its dropout from a stream of its own."""
        ...

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over all ranks."""
        ...

    def export(self, directory: Path) -> None:
        """Write the student as other programs read it; all ranks call it, rank 0 writes."""
        ...

    def write_version(self, directory: Path, *, merged: bool) -> None:
        """`Student.write_version`; all ranks call it, rank 0 writes."""
        ...


def make_optimizer(
    student: Student, optim: OptimSection, num_updates: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW over the trainable parameters, linear warm-up, cosine decay to zero at `num_updates`."""
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.AdamW(
        [p for p in student.parameters() if p.requires_grad],
        lr=optim.lr,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
    )
    warmup = round(optim.warmup_ratio * num_updates)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, warmup, num_updates)


def random_state() -> dict[str, Any]:
    """State of torch's generators, which draw dropout."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class TorchBackend:
    """Plain torch in one process: the reference, for notebooks, debugging and benchmarks."""

    rank = 0
    world_size = 1

    def __init__(self, student: Student, optim: OptimSection, *, num_updates: int) -> None:
        if next(student.parameters()).dtype != torch.float32:
            raise ConfigError(
                "the plain torch backend keeps no float32 copy of the weights: set student.dtype to float32"
            )
        self.student = student.train()
        self._optim = optim
        self._optimizer, self._scheduler = make_optimizer(student, optim, num_updates)

    def forward(self, batch: ResponseBatch, *, logits: bool = False) -> torch.Tensor:
        """See `Backend`."""
        rows: torch.Tensor = self.student(batch, logits=logits)
        return rows

    def backward(self, loss: torch.Tensor) -> None:
        """See `Backend`."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> tuple[float, float]:
        """See `Backend`."""
        trainable = [p for p in self.student.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trainable, self._optim.max_grad_norm)
        lr = float(self._scheduler.get_last_lr()[0])
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        return float(norm), lr

    def save(self, directory: Path) -> None:
        """See `Backend`."""
        trainable = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        state = {
            "weights": trainable,
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": random_state(),
        }
        torch.save(state, directory / _STATE_FILE)

    def load(self, directory: Path) -> None:
        """See `Backend`."""
        # The state is this program's own file; weights_only refuses anything that is no plain data all the same.
        state = torch.load(directory / _STATE_FILE, weights_only=True)
        self.student.load_state_dict(state["weights"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        restore_random_state(state["random"])

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        return values

    def export(self, directory: Path) -> None:
        """See `Backend`."""
        self.student.export(directory)

    def write_version(self, directory: Path, *, merged: bool) -> None:
        """See `Backend`."""
        self.student.write_version(directory, merged=merged)


class DeepSpeedBackend:
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
        """See `Backend`."""
        rows: torch.Tensor = self._engine(batch, logits=logits)
        return rows

    def backward(self, loss: torch.Tensor) -> None:
        """See `Backend`."""
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
            self._norm = float(self._engine.get_global_grad_norm())

    def step(self) -> tuple[float, float]:
        """See `Backend`. The engine itself updates with the last backward of the window."""
        return self._norm, self._last_lr

    def save(self, directory: Path) -> None:
        """See `Backend`."""
        self._engine.save_checkpoint(
            str(directory),
            tag="state",
            client_state={},
            save_latest=False,
            exclude_frozen_parameters=True,
        )
        torch.save(random_state(), directory / f"random-{self.rank}.pt")

    def load(self, directory: Path) -> None:
        """See `Backend`."""
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
        """See `Backend`."""
        import torch.distributed as dist

        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def export(self, directory: Path) -> None:
        """See `Backend`."""
        self._on_rank_0(lambda: self.student.export(directory))

    def write_version(self, directory: Path, *, merged: bool) -> None:
        """See `Backend`."""
        self._on_rank_0(lambda: self.student.write_version(directory, merged=merged))

    def _on_rank_0(self, work: Callable[[], None]) -> None:
        """Do some work with whole parameters on one rank while the others wait."""
        import deepspeed
        import torch.distributed as dist

        parameters = list(self.student.parameters()) if self._zero_stage == 3 else []
        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0, enabled=self._zero_stage == 3):
            if self.rank == 0:
                work()
        dist.barrier()


def use_cpu_accelerator() -> None:
    """Tell DeepSpeed that this process trains on the CPU; must precede its import."""
    os.environ["DS_ACCELERATOR"] = "cpu"
