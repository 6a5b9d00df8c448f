"""What a training backend is to the rest of the program."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from vcrd_ray.models.batching import ResponseBatch
from vcrd_ray.models.merging import CastLoss
from vcrd_ray.models.student import Student


@runtime_checkable
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

    def export(self, directory: Path) -> CastLoss | None:
        """`Student.export`; all ranks call it, rank 0 writes, and has the result."""
        ...

    def write_version(self, directory: Path, *, merged: bool) -> None:
        """`Student.write_version`; all ranks call it, rank 0 writes."""
        ...
