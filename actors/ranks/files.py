"""A rank's run directory: on disks that all nodes share, or of its node alone and kept in storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vcrd_ray.config.run import RunSection
from vcrd_ray.runs.checkpoints import CheckpointManager
from vcrd_ray.runs.lease import NOT_MIRRORED
from vcrd_ray.runs.storage import Mirror, Store


class RunFiles:
    """Which files one rank brings to and from storage; nothing at all on shared disks."""

    def __init__(self, run_dir: Path, section: RunSection, *, rank: int, local_rank: int) -> None:
        self.rank = rank
        self.store = None if section.storage is None else Store(section.storage).within(run_dir.name)
        self._run_dir = run_dir
        self._leads = (rank if self.store is None else local_rank) == 0
        self._mirror = None
        if self.store is not None and self._leads:
            self._mirror = Mirror(run_dir, self.store, skip=NOT_MIRRORED)

    def pull(self) -> None:
        """Bring what the run has left so far to this node; the other ranks of the node wait."""
        if self._mirror is not None:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._mirror.pull()
        torch.distributed.barrier()

    def push(self) -> None:
        """Bring storage up to date but for checkpoints."""
        if self._mirror is not None:
            self._mirror.push()

    def checkpoints(self, *, keep: int, warn: Callable[[str], None]) -> CheckpointManager:
        """The run's checkpoints; `warn` is told of those that are damaged."""
        return CheckpointManager(
            local=self._run_dir / "checkpoints",
            rank=self.rank,
            leads=self._leads,
            barrier=torch.distributed.barrier,
            gather=_gather,
            warn=warn,
            keep=keep,
            store=None if self.store is None else self.store.within("checkpoints"),
        )


def _gather(own: Any) -> list[Any]:
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found
