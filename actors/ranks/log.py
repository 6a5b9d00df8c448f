"""What a training leaves to be read: metrics, decisions and gauges of rank 0. Knows no models."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from actors.ranks.gauges import Gauges
from actors.ranks.notes import ControlNotes
from vcrd_ray.config import Config
from vcrd_ray.data.accuracy import Accuracy
from vcrd_ray.runs.files import read_jsonl, write_json, write_text
from vcrd_ray.runs.tracking import MetricsLog, flat_params
from vcrd_ray.training.trainer import TrainingLog
from vcrd_ray.types import UpdateReport

_DECISIONS_FILE = "decisions.jsonl"


class RankLog(TrainingLog):
    """Metrics and decisions of rank 0; both are cut back to where a resumed run begins."""

    def __init__(
        self, run_dir: Path, config: Config, *, notes: ControlNotes, next_update: int, num_updates: int
    ) -> None:
        write_json(run_dir / "progress.json", {"num_updates": num_updates, "pid": os.getpid()})
        self._notes, self._num_updates = notes, num_updates
        # A run directory and its job, such as demo/distill-vcrd: what people call the run.
        name = "/".join(run_dir.parts[-2:])
        self._gauges = Gauges(role="student", replica=0, run=name)
        self._metrics = MetricsLog(
            run_dir,
            next_update=next_update,
            trackers=config.run.trackers,
            project=config.run.project,
            name=name,
            params=flat_params(config.model_dump(mode="json")),
        )
        self._path = run_dir / _DECISIONS_FILE
        if self._path.exists():
            kept = [row for row in read_jsonl(self._path) if row["update"] < next_update]
            write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._decisions = self._path.open("a", encoding="utf-8")

    def write(self, report: UpdateReport) -> None:
        self._metrics.write(report.update, report.metrics)
        row = {"update": report.update, "num_updates": self._num_updates, **report.metrics}
        self._gauges.set(row)
        self._notes.leave("progress", row)
        self._decisions.writelines(json.dumps(asdict(d)) + "\n" for d in report.decisions)
        self._decisions.flush()

    def validated(self, update: int, figures: Accuracy) -> None:
        self._metrics.show(update, {"watch/pass_at_1": figures.pass_at_1})
        self._gauges.set({"watch/pass_at_1": figures.pass_at_1})

    def close(self) -> None:
        self._metrics.close()
        self._decisions.close()
