"""Student ranks under Ray Train: placement, rendezvous, restart from the last complete checkpoint.

Ray Train restarts the group; the checkpoints are this project's own (vcrd_ray.runs.checkpoints), because Ray Train's
record of its checkpoints is overwritten in place and a kill or a full disk in that moment loses all of them.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from functools import partial
from pathlib import Path

from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from actors.failures import causes_of
from actors.placement import role_resources
from actors.placement_wait import why_now
from actors.ranks.run_state import RankJob
from actors.ranks.worker import rank_main
from vcrd_ray.errors import CheckpointError, DiskFullError, ScheduleError, VcrdError
from vcrd_ray.runs.files import is_disk_full, read_jsonl
from vcrd_ray.runs.storage import Store
from vcrd_ray.training.trainer import DONE_FILE

logger = logging.getLogger(__name__)

# They would come again: no restart helps. A lost peer or a broken connection is a RuntimeError or an error of Ray's.
_PROGRAMMING_ERRORS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, ImportError, NameError)


def is_finished(run_dir: Path) -> bool:
    """Whether a training in this directory came to its end."""
    try:
        return bool(json.loads((run_dir / DONE_FILE).read_text(encoding="utf-8"))["finished"])
    except FileNotFoundError:
        return False


def train(job: RankJob) -> None:
    """Run the student group to the end of its training (or to `stop_after`).

    A group that dies (a killed process, a lost node) starts again from the last complete checkpoint. An error that a
    rank raised on purpose would come again, so it ends the run at once.

    Raises:
        VcrdError: the error that a rank raised on purpose, as it raised it.
        StoppedError: the run was told to end, and has saved.
        ScheduleError: there was no room for the group, or for a pool, in cluster.start_timeout_s.
        CheckpointError: the group died again and again, more often than student.max_failures allows.
    """
    failures, saved = 0, 0
    while True:
        try:
            _fit(job)
            return
        except TrainingFailedError as error:
            _refuse_no_room(error, job)
            of_ranks = list(getattr(error, "worker_failures", {}).values()) or [error]
            causes = [cause for failure in of_ranks for cause in causes_of(failure)]
            for cause in causes:
                if isinstance(cause, VcrdError):
                    raise cause from None
            full = [cause for cause in causes if is_disk_full(cause)]
            if full:
                raise DiskFullError(
                    f"{job.run_dir}: the disk is full ({full[-1]}); what was complete is as it was. Free some space"
                    " and run the same command again"
                ) from error
            if any(isinstance(cause, _PROGRAMMING_ERRORS) for cause in causes):
                raise
            last, saved = saved, int(job.notes.read("saved") or 0)
            failures = failures + 1 if saved == last else 1
            logger.warning("the student group died (%d in a row, %d updates saved): %s", failures, saved, error)
            if failures > job.config.student.max_failures:
                raise CheckpointError(
                    f"the student group died {failures} times in a row without a new checkpoint, last: {error}; run the"
                    " same command again to resume from the last checkpoint"
                ) from error


def _refuse_no_room(error: TrainingFailedError, job: RankJob) -> None:
    if not isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        return
    timeout_s, student = job.config.cluster.start_timeout_s, job.config.student
    wanted = why_now(student.fewest_ranks, role_resources(job.config, "student"))
    raise ScheduleError(
        f"the student group had no room for {timeout_s:g} s: {wanted}; ask for less, add nodes, or raise"
        " cluster.start_timeout_s"
    ) from None


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Ray Train's handler of SIGINT would end this process without a word and stay for what comes after the training."""

    def _register_sigint_handler(self, controller: object) -> None:
        pass


def _fit(job: RankJob) -> None:
    section, storage = job.config.student, job.config.run.storage
    # Ray Train asks again after each window, so that an elastic group can ask for less.
    timeout_s = job.config.cluster.start_timeout_s
    window_s = min(timeout_s, 60.0)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{window_s:g}"
    # Ray Train's own records, which nothing is read from.
    filesystem, path = None, str(job.run_dir / "ray_train")
    if storage is not None:
        filesystem, path = Store(storage).within(job.run_dir.name).within("ray_train").opened
    trainer = _Trainer(
        # Bound here and not as its config, which Ray Train's controller unpickles: it would import what a rank needs.
        partial(rank_main, job),
        torch_config=TorchConfig(backend="nccl" if section.gpus_per_rank else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=section.ranks
            if section.fewest_ranks == section.ranks
            else (section.fewest_ranks, section.ranks),
            use_gpu=section.gpus_per_rank > 0,
            resources_per_worker=role_resources(job.config, "student"),
        ),
        run_config=RunConfig(
            # A new name each time: Ray Train must not look for checkpoints of its own.
            name=f"attempt-{time.time_ns()}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=math.ceil(timeout_s / window_s) - 1),
        ),
    )
    trainer.fit()


def warn_of_quarantined(run_dir: Path) -> None:
    """Tell the person who waits for the run; what the ranks log is in Ray's files only."""
    tokens = sum(row.get("judge/set_aside_rows", 0.0) for row in read_jsonl(run_dir / "metrics.jsonl"))
    if tokens:
        logger.warning(
            "%d tokens were not judged and got weight 1: judge processes died of their requests (judge/set_aside_rows in"
            " %s)",
            *(tokens, run_dir / "metrics.jsonl"),
        )
