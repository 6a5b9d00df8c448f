"""Resume, train, checkpoint, log, export: the same for every kind of training. Knows no models, no losses and no Ray.

Fine-tuning and distillation are the two loops that it runs. A rank under Ray gives it checkpoints, a log and a stop rule;
in one process it runs without.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch

from vcrd_ray.config.stages import TrainingSection
from vcrd_ray.data.accuracy import Accuracy
from vcrd_ray.errors import CheckpointError, DiskFullError, JudgeError, NotFiniteError
from vcrd_ray.models.backend import Backend
from vcrd_ray.models.finite import first_not_finite
from vcrd_ray.runs.checkpoint_record import CheckpointRecord
from vcrd_ray.runs.checkpoints import CheckpointManager, check_resumable
from vcrd_ray.runs.files import is_disk_full, write_json
from vcrd_ray.runs.logs import log_as
from vcrd_ray.training.on_policy.student_versions import StudentVersions
from vcrd_ray.types import UpdateReport

DONE_FILE = "training.json"
"""Left in a run's directory when a training ends; `finished` says whether it came to its last update."""


class Loop(Protocol):
    """Updates of one kind of training."""

    num_updates: int

    def run(self, *, first_update: int, stop: int, on_update: Callable[[UpdateReport], None]) -> None:
        """Carry out updates [first_update, stop) and call `on_update` after each."""
        ...

    def record(self) -> dict[str, object]:
        """What a checkpoint must hold beside weights and optimizer; plain numbers."""
        ...

    def restore(self, record: dict[str, object]) -> None:
        """Inverse of `record`."""
        ...

    def facts(self) -> dict[str, object]:
        """What is worth knowing of the run once it is over."""
        ...


class TrainingLog(Protocol):
    """Where the figures of a training go."""

    def write(self, report: UpdateReport) -> None:
        """Append one update."""
        ...

    def validated(self, update: int, figures: Accuracy) -> None:
        """Show how the student did on held-out problems when so many updates were done."""
        ...

    def close(self) -> None:
        """Flush all files."""
        ...


class StopRule(Protocol):
    """Whether a run must end before its last update. All ranks ask after every update."""

    def must_save(self) -> bool:
        """Whether a checkpoint must be written after this update."""
        ...

    def done(self, *, saved_s: float) -> None:
        """The next update begins; `saved_s` seconds went into a checkpoint.

        Raises:
            StoppedError: the run ends here.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a training that can be resumed leaves on disk, and who is told."""

    directory: Path
    checkpoints: CheckpointManager
    fingerprints: dict[str, str]
    """Of models and data: a checkpoint of others is refused."""
    any_size: bool
    """Whether a checkpoint can be loaded by another number of ranks."""
    stop_rule: StopRule
    open_log: Callable[[int], TrainingLog | None]
    """First update -> the log; None on ranks that keep none."""
    push: Callable[[], None]
    """Bring storage up to date but for checkpoints."""
    on_saved: Callable[[int], None]
    """Told the updates done once a checkpoint is complete."""
    tell: Callable[[str], None]
    """Say something to the person who waits for the run."""


class Trainer:
    """One rank's run of a loop."""

    def __init__(
        self,
        *,
        loop: Loop,
        backend: Backend,
        section: TrainingSection,
        run: RunState | None = None,
        versions: StudentVersions | None = None,
    ) -> None:
        """`run`: None: nothing is kept but the student."""
        self._loop = loop
        self._backend = backend
        self._section = section
        self._state = run
        self._versions = versions
        self._log: TrainingLog | None = None
        self._last_good: Path | None = None
        self.reports: list[UpdateReport] = []
        """Of every update of this process, where there is no `run` that keeps them."""

    def run(self) -> None:
        """Resume where there is something to resume, train to the end or to `stop_after`, export at the end.

        Raises:
            CheckpointError: the checkpoint is of other models or data, or the disk refused.
            DiskFullError: there is no room for metrics or the student; what was complete is as it was.
            NotFiniteError, JudgeError: something that should be a number is none; the last good checkpoint is named.
            StoppedError: the stop rule ended the run; it is saved.
        """
        try:
            self._run()
        except (NotFiniteError, JudgeError) as error:
            raise type(error)(f"{error}; {self._good()}") from error
        except Exception as error:
            if isinstance(error, CheckpointError) or not is_disk_full(error):
                raise
            raise DiskFullError(f"{error}; {self._good()}") from error

    def _good(self) -> str:
        return f"the last good checkpoint is {self._last_good or 'none'}"

    def _run(self) -> None:
        first_update = self._resume()
        stop = min(self._loop.num_updates, self._section.stop_after or self._loop.num_updates)
        if self._state is not None:
            self._log = self._state.open_log(first_update)
        if self._versions is not None:
            self._versions.begin(first_update)
        self._loop.run(
            first_update=first_update, stop=stop, on_update=lambda report: self._on_update(report, last=stop)
        )
        if self._versions is not None:
            self._show(self._versions.finish())
        if self._state is not None:
            self._finish(self._state, stop)

    def _resume(self) -> int:
        """Load the last complete checkpoint; the first update that is still to be done."""
        state = self._state
        found = None if state is None else state.checkpoints.newest()
        if state is None or found is None:
            return 0
        path, record = found
        check_resumable(
            record,
            world_size=self._backend.world_size,
            fingerprints=state.fingerprints,
            any_size=state.any_size,
        )
        try:
            self._backend.load(path)
            self._loop.restore(record.state)
        except (OSError, EOFError, LookupError, TypeError, ValueError, UnpicklingError) as error:
            raise CheckpointError(
                f"{path} cannot be loaded ({type(error).__name__}: {error}); remove it to go on from the one before"
            ) from error
        self._last_good = path
        return record.next_update

    def _on_update(self, report: UpdateReport, *, last: int) -> None:
        log_as(update=report.update)
        if self._log is not None:
            self._log.write(report)
        done = report.update + 1
        state = self._state
        saved_s = 0.0
        if state is None:
            self.reports.append(report)
        elif state.stop_rule.must_save() or done % self._section.checkpoint_every == 0 or done == last:
            saved_s = self._save(state, done)
        if self._versions is not None:
            resumable: Callable[[], list[int]] = list if state is None else state.checkpoints.complete
            self._show(self._versions.after(report, resumable))
        if state is not None and done < last:
            state.stop_rule.done(saved_s=saved_s)

    def _save(self, state: RunState, done: int) -> float:
        """Seconds that it took."""
        started = time.monotonic()
        self._check_weights(done)
        state.push()
        record = CheckpointRecord(
            next_update=done,
            world_size=self._backend.world_size,
            fingerprints=state.fingerprints,
            state=self._loop.record(),
        )
        self._last_good = state.checkpoints.save(record, write=self._backend.save)
        if self._backend.rank == 0:
            state.on_saved(done)
        return time.monotonic() - started

    def _check_weights(self, done: int) -> None:
        """No checkpoint to go on from may hold what no run can go on from. All ranks stop where one of them finds it."""
        student = self._backend.student
        weight = first_not_finite((n, p) for n, p in student.named_parameters() if p.requires_grad)
        if self._backend.sum_over_ranks(torch.tensor(float(weight is not None), device=student.device)):
            raise NotFiniteError(
                f"update {done - 1}: the student's {weight or 'weights of another rank'} came to hold NaN or an infinity; lower"
                " optim.lr"
            )

    def _show(self, found: list[tuple[int, Accuracy]]) -> None:
        if self._log is not None:
            for update, figures in found:
                self._log.validated(update, figures)

    def _finish(self, state: RunState, stop: int) -> None:
        finished = stop == self._loop.num_updates
        cast = self._backend.export(state.directory) if finished else None
        if cast is not None:
            state.tell(cast.say())
        if self._log is not None:
            self._log.close()
            state.push()
            ended: dict[str, Any] = {"updates_done": stop, "num_updates": self._loop.num_updates, "finished": finished}
            exported = {} if cast is None else {"export": asdict(cast)}
            # Last, so that whoever finds it finds everything.
            write_json(state.directory / DONE_FILE, ended | self._loop.facts() | exported)
            state.push()
