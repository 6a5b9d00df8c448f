"""What a rank is told, and what of its cluster a Trainer is given."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from actors.pools.pool import Pool
from actors.ranks.files import RunFiles
from actors.ranks.log import RankLog
from actors.ranks.notes import ControlNotes
from actors.ranks.stopping import EarlyStop
from vcrd_ray.config import Config
from vcrd_ray.config.stages import TrainingSection
from vcrd_ray.models.backend import Backend
from vcrd_ray.training.trainer import Loop, RunState

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RankJob:
    """What a rank is told. Pickled to every worker."""

    config: Config
    run_dir: Path
    rollouts: str | None
    """Rollouts to distil on, a directory or a folder in storage; None: fine-tune on gold solutions."""
    teacher: Pool | None
    judge: Pool | None
    rollout: Pool | None
    """Writers of new student responses; None: those in `rollouts` stay."""
    notes: ControlNotes
    must_save_by: float | None
    """Seconds since the epoch."""


def run_state(
    job: RankJob,
    files: RunFiles,
    loop: Loop,
    backend: Backend,
    section: TrainingSection,
    fingerprints: dict[str, str],
) -> RunState:
    def open_log(first_update: int) -> RankLog | None:
        if backend.rank != 0:
            return None
        return RankLog(job.run_dir, job.config, notes=job.notes, next_update=first_update, num_updates=loop.num_updates)

    told: list[str] = []

    def tell(text: str) -> None:
        logger.warning(text)
        told.append(text)
        job.notes.leave("told", told)

    return RunState(
        directory=job.run_dir,
        checkpoints=files.checkpoints(keep=section.keep_checkpoints, warn=tell),
        fingerprints=fingerprints,
        any_size=job.config.student.zero_stage == 0,
        stop_rule=EarlyStop(backend, job.notes, must_save_by=job.must_save_by),
        open_log=open_log,
        push=files.push,
        on_saved=partial(job.notes.leave, "saved"),
        tell=tell,
    )
