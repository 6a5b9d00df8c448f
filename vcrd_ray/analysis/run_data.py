"""A run directory -> what a report shows of it. Whatever is missing is left out. Knows nothing of HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vcrd_ray.evaluation.statistics import Accuracy
from vcrd_ray.runs import read_jsonl
from vcrd_ray.types import Decision

_NAMES = {"teacher": "teacher", "sft": "student after SFT"}


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """One training run: a fine-tuning or a distillation."""

    name: str
    """The method's name, or `sft`."""
    metrics: list[dict[str, float]]
    decisions: list[Decision]
    facts: dict[str, Any]
    config: str
    versions: dict[str, Any]
    model: Path | None


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All that a run directory holds."""

    accuracy: dict[str, Accuracy]
    distillations: list[TrainingData]
    sft: TrainingData | None
    wall_s: dict[str, float]
    rollouts: Path | None


def read_run(run_dir: Path) -> RunData:
    """Everything of a run directory that is there."""
    results = [read_object(path) for path in sorted(run_dir.glob("evaluate-*/result.json"))]
    order = {"teacher": 0, "sft": 1, "vcrd": 2}
    results.sort(key=lambda r: (order.get(r["label"], 9), r["label"]))
    folders = sorted(
        (p for p in run_dir.glob("distill*") if (p / "metrics.jsonl").is_file()),
        key=lambda p: (method_name(p) != "vcrd", method_name(p)),
    )
    sft = run_dir / "sft"
    rollouts = run_dir / "rollouts"
    summary = run_dir / "summary.json"
    return RunData(
        accuracy={r["label"]: Accuracy(**{k: r[k] for k in Accuracy.model_fields}) for r in results},
        distillations=[_training(p, method_name(p)) for p in folders],
        sft=_training(sft, "sft") if (sft / "metrics.jsonl").is_file() else None,
        wall_s=read_object(summary).get("wall_s", {}) if summary.is_file() else {},
        rollouts=rollouts if (rollouts / "manifest.json").is_file() else None,
    )


def method_name(folder: Path) -> str:
    """What a distillation folder is called in a report: its method's name, or `distill`."""
    return folder.name.removeprefix("distill-")


def display_name(label: str) -> str:
    """What an evaluation is called in a table."""
    return _NAMES.get(label, f"student after {label}")


def read_object(path: Path) -> dict[str, Any]:
    """One JSON object from a file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _training(folder: Path, name: str) -> TrainingData:
    decisions = folder / "decisions.jsonl"
    done, config, versions = folder / "training.json", folder / "config.yaml", folder / "versions.json"
    return TrainingData(
        name=name,
        metrics=read_jsonl(folder / "metrics.jsonl"),
        decisions=[Decision(**row) for row in read_jsonl(decisions)] if decisions.is_file() else [],
        facts=read_object(done) if done.is_file() else {},
        config=yaml.safe_dump(yaml.safe_load(config.read_text(encoding="utf-8"))) if config.is_file() else "",
        versions=read_object(versions) if versions.is_file() else {},
        model=folder / "model" if (folder / "model" / "config.json").is_file() else None,
    )
