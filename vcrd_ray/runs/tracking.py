"""Where metrics of a training go: JSON Lines and TensorBoard always, MLflow and Weights & Biases when asked for."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vcrd_ray.config.run import TrackerName
from vcrd_ray.errors import ConfigError
from vcrd_ray.runs.files import read_jsonl, read_text, write_text

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"


class Tracker(Protocol):
    """One place that metrics go to."""

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Add the metrics of one update."""

    def close(self) -> None:
        """Nothing more will come."""


class TensorBoard(Tracker):
    """Event files in RUN/tensorboard; those at and after the update that a run resumes from are hidden."""

    def __init__(self, directory: Path, *, next_update: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # torch is slow to import; configs are read without it

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=next_update)  # type: ignore[no-untyped-call]

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, update)

    def close(self) -> None:
        self._writer.close()


class MLflow(Tracker):
    """A run in the tracking server that MLFLOW_TRACKING_URI names, MLflow's own default without it."""

    def __init__(self, directory: Path, *, project: str, name: str, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        found = read_text(directory / "mlflow_run_id")
        if found is None:
            experiment = self._client.get_experiment_by_name(project)
            number = experiment.experiment_id if experiment else self._client.create_experiment(project)
            found = self._client.create_run(number, run_name=name).info.run_id
            write_text(directory / "mlflow_run_id", found)
            self._client.log_batch(found, params=[Param(k, str(v)[:500]) for k, v in params.items()])
        self._run = found

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        shown = [Metric(k, v, now, update) for k, v in metrics.items() if math.isfinite(v)]
        self._client.log_batch(self._run, metrics=shown)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class WandB(Tracker):
    """A run of Weights & Biases, with its key from WANDB_API_KEY; WANDB_MODE=offline keeps it here."""

    def __init__(self, directory: Path, *, project: str, name: str, params: Mapping[str, object]) -> None:
        import wandb

        found = read_text(directory / "wandb_run_id") or uuid.uuid4().hex[:8]
        write_text(directory / "wandb_run_id", found)
        self._run = wandb.init(
            project=project, name=name, id=found, resume="allow", dir=str(directory), config=dict(params)
        )
        # A resumed run goes back to its last checkpoint, and W&B's own counter does not.
        self._run.define_metric("*", step_metric="update")

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"update": update, **metrics})

    def close(self) -> None:
        self._run.finish()


_OPTIONAL: dict[TrackerName, Callable[..., Tracker]] = {"mlflow": MLflow, "wandb": WandB}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ConfigError: names the package.
    """
    import importlib.util

    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"run.trackers {name}: the package is not installed; pip install 'vcrd-ray[track]'")


class MetricsLog:
    """Metrics of a training run as JSON Lines, and whatever else is asked for.

    A resumed run cuts the lines at and after the update it resumes from, so that each update stands there once.
    """

    def __init__(
        self,
        directory: Path,
        *,
        next_update: int,
        trackers: Sequence[TrackerName] = (),
        project: str = "vcrd_ray",
        name: str = "",
        params: Mapping[str, object] | None = None,
    ) -> None:
        self._path = directory / METRICS_FILE
        if self._path.exists():
            kept = [line for line in read_jsonl(self._path) if line["update"] < next_update]
            write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", encoding="utf-8")
        self._failed: list[Tracker] = []
        self._trackers: list[Tracker] = [TensorBoard(directory, next_update=next_update)]
        for each in trackers:
            try:
                self._trackers.append(_OPTIONAL[each](directory, project=project, name=name, params=params or {}))
            except Exception as error:  # of any client library
                raise ConfigError(
                    f"run.trackers {each}: it cannot be opened ({error}); check its address and key"
                ) from error

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """Append one update; the line is on disk when this returns."""
        self._file.write(json.dumps({"update": update, "time": time.time(), **metrics}) + "\n")
        self._file.flush()
        self.show(update, metrics)

    def show(self, update: int, metrics: Mapping[str, float]) -> None:
        """Give values that not every update has to the trackers alone."""
        for tracker in self._trackers:
            self._tell(tracker, lambda to: to.write(update, metrics))

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        for tracker in self._trackers:
            self._tell(tracker, lambda to: to.close())

    def _tell(self, tracker: Tracker, call: Callable[[Tracker], None]) -> None:
        """A tracking server that is away must not end a run whose metrics are in a file."""
        try:
            call(tracker)
        except Exception as error:  # of any client library
            if tracker not in self._failed:
                self._failed.append(tracker)
                logger.warning("%s: %s; metrics are in %s all the same", type(tracker).__name__, error, self._path)


def flat_params(config: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """A nested configuration as dotted keys, as trackers show it."""
    flat: dict[str, object] = {}
    for name, value in config.items():
        flat |= flat_params(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
