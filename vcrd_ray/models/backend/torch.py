"""Plain torch in one process. Knows no DeepSpeed."""

from __future__ import annotations

from pathlib import Path

import torch

from vcrd_ray.config.stages import OptimSection, TrainingSection
from vcrd_ray.errors import ConfigError
from vcrd_ray.models.backend.optimizer import make_optimizer, random_state, restore_random_state
from vcrd_ray.models.backend.protocol import Backend
from vcrd_ray.models.batching import ResponseBatch
from vcrd_ray.models.merging import CastLoss
from vcrd_ray.models.student import Student

_STATE_FILE = "state.pt"


class TorchBackend(Backend):
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
        rows: torch.Tensor = self.student(batch, logits=logits)
        return rows

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self) -> tuple[float, float]:
        trainable = [p for p in self.student.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(trainable, self._optim.max_grad_norm)
        lr = float(self._scheduler.get_last_lr()[0])
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        return float(norm), lr

    def save(self, directory: Path) -> None:
        trainable = {n: p for n, p in self.student.named_parameters() if p.requires_grad}
        state = {
            "weights": trainable,
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": random_state(),
        }
        torch.save(state, directory / _STATE_FILE)

    def load(self, directory: Path) -> None:
        # The state is this program's own file; weights_only refuses anything that is no plain data all the same.
        state = torch.load(directory / _STATE_FILE, weights_only=True)
        self.student.load_state_dict(state["weights"], strict=False)
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        restore_random_state(state["random"])

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def export(self, directory: Path) -> CastLoss | None:
        return self.student.export(directory)

    def write_version(self, directory: Path, *, merged: bool) -> None:
        self.student.write_version(directory, merged=merged)


def torch_backend(student: Student, section: TrainingSection, *, num_updates: int, num_micro: int) -> TorchBackend:
    """What trains a student in one process. Plain torch accumulates until it is told to step, whatever `num_micro`."""
    return TorchBackend(student, section.optim, num_updates=num_updates)
