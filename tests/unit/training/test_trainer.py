"""What a training leaves when it cannot go on: one error that names the last good checkpoint."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vcrd_ray.config.stages import SftSection
from vcrd_ray.data.accuracy import Accuracy
from vcrd_ray.errors import CheckpointError, DiskFullError, JudgeError, NotFiniteError, VcrdError
from vcrd_ray.models.backend import Backend
from vcrd_ray.runs.checkpoints import CheckpointManager
from vcrd_ray.training.trainer import Loop, RunState, StopRule, Trainer, TrainingLog
from vcrd_ray.types import UpdateReport

Harm = Callable[[int], None]


class CountingLoop(Loop):
    num_updates = 4

    def __init__(self, harm: Harm) -> None:
        self._harm = harm

    def run(self, *, first_update: int, stop: int, on_update: Callable[[UpdateReport], None]) -> None:
        for update in range(first_update, stop):
            self._harm(update)
            on_update(UpdateReport(update=update, metrics={"loss": 1.0}, decisions=()))

    def record(self) -> dict[str, object]:
        return {}

    def restore(self, record: dict[str, object]) -> None:
        pass

    def facts(self) -> dict[str, object]:
        return {}


class SmallBackend(Backend):
    rank, world_size = 0, 1

    def __init__(self, *, load: Exception | None = None, export: Exception | None = None) -> None:
        self.module = torch.nn.Linear(2, 2)
        self.student: Any = SimpleNamespace(device=torch.device("cpu"), named_parameters=self.module.named_parameters)
        self._load, self._export = load, export

    def forward(self, batch: Any, *, logits: bool = False) -> torch.Tensor:
        raise NotImplementedError

    def backward(self, loss: torch.Tensor) -> None:
        raise NotImplementedError

    def step(self) -> tuple[float, float]:
        raise NotImplementedError

    def save(self, directory: Path) -> None:
        torch.save(self.module.state_dict(), directory / "state.pt")

    def load(self, directory: Path) -> None:
        if self._load is not None:
            raise self._load

    def sum_over_ranks(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def export(self, directory: Path) -> None:
        if self._export is not None:
            raise self._export

    def write_version(self, directory: Path, *, merged: bool) -> None:
        raise NotImplementedError


class ListLog(TrainingLog):
    def __init__(self, harm: Harm) -> None:
        self._harm = harm

    def write(self, report: UpdateReport) -> None:
        self._harm(report.update)

    def validated(self, update: int, figures: Accuracy) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


class NeverStop(StopRule):
    def must_save(self) -> bool:
        return False

    def done(self, *, saved_s: float) -> None:
        pass


def nothing(update: int) -> None:
    pass


def at(update: int, error: Exception) -> Harm:
    def harm(now: int) -> None:
        if now == update:
            raise error

    return harm


def trainer(directory: Path, *, loop: Harm = nothing, log: Harm = nothing, backend: Backend | None = None) -> Trainer:
    state = RunState(
        directory=directory,
        checkpoints=CheckpointManager(
            local=directory / "checkpoints", rank=0, leads=True, barrier=lambda: None, keep=2, warn=lambda text: None
        ),
        fingerprints={},
        any_size=True,
        stop_rule=NeverStop(),
        open_log=lambda first: ListLog(log),
        push=lambda: None,
        on_saved=lambda done: None,
        tell=lambda text: None,
    )
    section = SftSection.model_validate({"checkpoint_every": 1})
    return Trainer(loop=CountingLoop(loop), backend=backend or SmallBackend(), section=section, run=state)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", [NotFiniteError, JudgeError])
def test_the_last_good_checkpoint_is_named_where_a_number_is_none(tmp_path: Path, kind: type[VcrdError]) -> None:
    with pytest.raises(kind, match=r"update 2: .*; the last good checkpoint is .*update-000002$"):
        trainer(tmp_path, loop=at(2, kind("update 2: the student's loss is nan"))).run()
    with pytest.raises(kind, match=r"the last good checkpoint is .*update-000002$"):
        trainer(tmp_path, loop=at(2, kind("update 2: again"))).run()


def test_without_a_checkpoint_there_is_none_to_name(tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="the last good checkpoint is none"):
        trainer(tmp_path, loop=at(0, NotFiniteError("update 0: x"))).run()


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("PytorchStreamWriter failed writing file data/0"),
    ],
)
@pytest.mark.parametrize("where", ["log", "export"])
def test_a_full_disk_anywhere_in_a_training_is_one_error(tmp_path: Path, error: Exception, where: str) -> None:
    made = (
        trainer(tmp_path, log=at(2, error)) if where == "log" else trainer(tmp_path, backend=SmallBackend(export=error))
    )
    last = "update-000002" if where == "log" else "update-000004"
    with pytest.raises(DiskFullError, match=rf"the last good checkpoint is .*{last}"):
        made.run()
    trainer(tmp_path).run()  # with room the same goes on to the end
    assert (tmp_path / "training.json").is_file()


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError):
        trainer(tmp_path, log=at(1, ConnectionResetError("peer"))).run()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path, value: float) -> None:
    backend = SmallBackend()

    def spoil(update: int) -> None:
        if update == 2:
            backend.module.weight.data[0, 0] = value

    with pytest.raises(NotFiniteError, match=r"update 2: the student's weight .*optim\.lr.*update-000002"):
        trainer(tmp_path, loop=spoil, backend=backend).run()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["update-000001", "update-000002"]


@pytest.mark.parametrize("error", [EOFError("Ran out of input"), KeyError("optimizer"), FileNotFoundError("state.pt")])
def test_a_state_that_cannot_be_loaded_is_named_with_a_cure(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(NotFiniteError):
        trainer(tmp_path, loop=at(2, NotFiniteError("x"))).run()
    with pytest.raises(
        CheckpointError, match=r"update-000002 cannot be loaded .*remove it to go on from the one before"
    ):
        trainer(tmp_path, backend=SmallBackend(load=error)).run()
