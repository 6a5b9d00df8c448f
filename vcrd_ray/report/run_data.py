"""A run directory -> what a report shows of it. Whatever is missing is left out. Knows nothing of HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from vcrd_ray.config.base import THINKING, Thinking
from vcrd_ray.config.yaml_files import read_yaml
from vcrd_ray.data.accuracy import Accuracy
from vcrd_ray.data.manifest import check_manifest, pair_id, read_manifest, split_pair_id
from vcrd_ray.data.problems import Reject
from vcrd_ray.data.rollouts import part_path, read_pairs
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.processbench import BenchFigures
from vcrd_ray.evaluation.published import published_for
from vcrd_ray.evaluation.scoreboard import Scoreboard, read_scoreboard
from vcrd_ray.grading.figures import GradingFigures, grading_figures
from vcrd_ray.grading.rollouts import response_of, rollouts_grader
from vcrd_ray.report.calibration_figures import CalibrationReport
from vcrd_ray.report.refreshed import RefreshData, read_refreshed
from vcrd_ray.runs.files import read_jsonl
from vcrd_ray.training.on_policy.validator import WATCHED
from vcrd_ray.types import SIDES, Decision, IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GRADED = ["prompt_id", "sample", "answer", "prompt_ids"]
_GRADED += [f"{side}_{name}" for side in SIDES for name in ("ids", "finish_reason")]
_NAMES = {"teacher": "teacher", "sft": "student after SFT"}
_ORDER = {"teacher": 0, "sft": 1, "vcrd": 2}


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
    refresh: RefreshData | None = None
    watched: tuple[tuple[int, Accuracy], ...] = ()
    """Accuracy on the watched problems after so many updates, in order."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """All that a run directory holds."""

    accuracy: dict[str, Accuracy]
    distillations: list[TrainingData]
    sft: TrainingData | None
    wall_s: dict[str, float]
    rollouts: Path | None
    calibration: CalibrationReport | None
    processbench: list[BenchFigures]
    benchmarks: Scoreboard | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedResponse:
    """A response whose final answer was compared with the gold one."""

    prompt: int
    """Index of its prompt."""
    question: str
    ids: IntArray
    right: bool


def read_run(run_dir: Path) -> RunData:
    """Everything of a run directory that is there."""
    results = [read_object(path) for path in sorted(run_dir.glob("evaluate-*/result.json"))]
    results.sort(key=lambda r: _place(r["label"]))
    folders = sorted(
        (p for p in run_dir.glob("distill*") if (p / "metrics.jsonl").is_file()),
        key=lambda p: (method_name(p) != "vcrd", method_name(p)),
    )
    sft = run_dir / "sft"
    rollouts = run_dir / "rollouts"
    summary = run_dir / "summary.json"
    calibration, bench = run_dir / "calibration" / "calibration.json", run_dir / "calibration" / "processbench.json"
    return RunData(
        accuracy={r["label"]: Accuracy(**{k: r[k] for k in Accuracy.model_fields}) for r in results},
        distillations=[_training(p, method_name(p)) for p in folders],
        sft=_training(sft, "sft") if (sft / "metrics.jsonl").is_file() else None,
        wall_s=read_object(summary).get("wall_s", {}) if summary.is_file() else {},
        rollouts=rollouts if (rollouts / "manifest.json").is_file() else None,
        calibration=_calibration(calibration) if calibration.is_file() else None,
        processbench=[BenchFigures(**f) for f in read_object(bench)["files"]] if bench.is_file() else [],
        benchmarks=_benchmarks(run_dir),
    )


def _place(label: str) -> tuple[int, str]:
    return _ORDER.get(label, len(_ORDER)), label


def _benchmarks(run_dir: Path) -> Scoreboard | None:
    folders = {path.name.removeprefix("evaluate-"): path for path in run_dir.glob("evaluate-*")}
    teacher, student = _pair(run_dir)
    published = published_for(teacher=teacher, student=student) if teacher and student else None
    return read_scoreboard({label: folders[label] for label in sorted(folders, key=_place)}, published=published)


def _pair(run_dir: Path) -> tuple[str | None, str | None]:
    """Teacher and student before any training, as the stages' configs name them."""
    found: dict[str, str] = {}
    # After a fine-tuning later stages know the fine-tuned student only.
    for file in (run_dir / "sft" / "config.yaml", *sorted(run_dir.glob("distill*/config.yaml"))):
        if file.is_file():
            content = read_yaml(file) or {}
            for role in ("teacher", "student"):
                path = (content.get(role) or {}).get("path")
                if path is not None:
                    found.setdefault(role, path)
    return found.get("teacher"), found.get("student")


def read_checked(
    rollouts: Path, tokenizer: PreTrainedTokenizerBase, *, max_length: int, seed: int, thinking: Thinking = THINKING
) -> tuple[list[CheckedResponse], GradingFigures, list[Reject]]:
    """Responses of prompts that have a gold answer, prompts in an order drawn by the seed.

    Returns:
        The responses, what became of them and of those without such an answer, and the rejected pairs.

    Raises:
        DataError: unusable rollouts, or none with a gold answer that a response could meet.
        ConfigError: the golds need a library that is not installed.
    """
    from vcrd_ray.models.checkpoint_files import tokenizer_fingerprint

    # Whose responses they are is no matter; the token ids must mean what the judge takes them for.
    manifest = check_manifest(
        rollouts, teacher=read_manifest(rollouts).teacher, tokenizer=tokenizer_fingerprint(tokenizer)
    )
    pairs, rejects = read_pairs(
        rollouts,
        teacher=manifest.teacher,
        tokenizer=manifest.tokenizer,
        vocab_size=len(tokenizer),
        max_length=max_length,
    )
    rows = {
        pair_id(row["prompt_id"], row["sample"]): row
        for block in range(manifest.num_blocks)
        for row in pq.read_table(part_path(rollouts, block), columns=_GRADED).to_pylist()
    }
    prompts = dict.fromkeys(split_pair_id(pair.id)[0] for pair in pairs)
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    drawn = [pairs[index] for index in np.random.default_rng(seed).permutation(len(pairs))]
    sides = [(pair, side) for pair in drawn for side in SIDES]
    responses = [response_of(rows[pair.id], side, tokenizer=tokenizer, thinking=thinking) for pair, side in sides]
    grader = rollouts_grader([r.gold for r in responses], rollouts, thinking)
    checked = grader.grade(responses)
    found = [
        CheckedResponse(
            prompt=numbers[split_pair_id(pair.id)[0]],
            question=pair.question,
            ids=pair.teacher_ids if side == "teacher" else pair.student_ids,
            right=one.right,
        )
        for (pair, side), one in zip(sides, checked, strict=True)
        if one.right is not None
    ]
    return found, grading_figures(checked, grader), rejects


def _calibration(path: Path) -> CalibrationReport:
    try:
        return CalibrationReport.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError:
        raise DataError(f"{path}: not written by this version of jobs.calibrate; run it again, or remove it") from None


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
        config=yaml.safe_dump(read_yaml(config)) if config.is_file() else "",
        versions=read_object(versions) if versions.is_file() else {},
        model=folder / "model" if (folder / "model" / "config.json").is_file() else None,
        refresh=read_refreshed(folder),
        watched=_watched(folder / WATCHED),
    )


def _watched(path: Path) -> tuple[tuple[int, Accuracy], ...]:
    if not path.is_file():
        return ()
    # A version may be graded once more after a resume, and grades come in any order.
    rows = {row["update"]: Accuracy(**{k: row[k] for k in Accuracy.model_fields}) for row in read_jsonl(path)}
    return tuple(sorted(rows.items()))
