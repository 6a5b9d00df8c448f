"""Rollouts and judges -> what the judges' scores are worth, on disk. The statistics are those of calibration.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vcrd_ray.config import Config
from vcrd_ray.config.models import ModelJudge
from vcrd_ray.data.manifest import read_manifest
from vcrd_ray.errors import DataError, ModelError
from vcrd_ray.evaluation.processbench import BenchFigures, judge_items, read_processbench
from vcrd_ray.judges import Judge
from vcrd_ray.judges.calibrated import NOT_TEXT, StepPositions
from vcrd_ray.judges.loading import check_judge, load_judge
from vcrd_ray.models.checkpoint_files import load_tokenizer, must_be_fetched, resolve_model
from vcrd_ray.report.calibration import Reads, agreement, calibrate
from vcrd_ray.report.calibration_figures import CalibrationReport, Method, OtherJudge
from vcrd_ray.report.run_data import CheckedResponse, read_checked
from vcrd_ray.runs.directory import versions
from vcrd_ray.runs.files import write_json
from vcrd_ray.runs.progress import ShowProgress
from vcrd_ray.types import FloatArray, IntArray, JudgeRequest

FOLDER = "calibration"
_BATCH = 64  # responses of a request, so that progress can be shown


def check_sources(
    config: Config, directory: Path, others: Sequence[Config], files: Sequence[Path], *, fetch: bool = True
) -> None:
    """Refuse missing files, missing rollouts and judges that read other tokens than the student writes.

    Args:
        fetch: look also at models that must be copied here first.
    """
    for file in files:
        if not file.is_file():
            raise DataError(f"--processbench {file}: no such file")
    if not files or directory.is_dir():
        read_manifest(directory)
    for section in (config.judge, *(other.judge for other in others)):
        paths = [config.student.path, *([section.path] if isinstance(section, ModelJudge) else [])]
        if fetch or not any(must_be_fetched(path) for path in paths):
            check_judge(section, policy=config.student.path)


def load(config: Config) -> Judge:
    """The configured judge, uncalibrated, in this process."""
    torch.set_num_threads(config.judge.threads)
    return load_judge(config.judge.model_copy(update={"calibration": None}), policy=config.student.path)


def measure(
    config: Config,
    directory: Path,
    *,
    method: Method,
    show_progress: ShowProgress,
    judge: Judge | None = None,
    max_rollouts: int | None = None,
    others: Sequence[tuple[str, Config]] = (),
) -> CalibrationReport:
    """Measure and fit on rollouts, with a judge that is loaded already or the config's; writes calibration.json.

    Args:
        directory: the rollouts.
        max_rollouts: responses that are judged at most.
        others: configurations with other judges to compare with, by name.
    """
    tokenizer = load_tokenizer(resolve_model(config.student.path))
    responses, grading, rejects = read_checked(
        directory,
        tokenizer,
        max_length=config.distill.max_length,
        seed=config.run.seed,
        thinking=config.evaluate.thinking,
    )
    if rejects:
        print(f"{len(rejects)} pairs are left out; the first: {rejects[0].reason}", file=sys.stderr)
    responses = responses[:max_rollouts]
    judge = judge or load(config)
    reads, classes = _reads(judge, responses, StepPositions(tokenizer), show_progress)
    calibration, figures = calibrate(reads, classes, profile=judge.profile, method=method, seed=config.run.seed)
    compared = [
        _compare(name, other.model_copy(update={"student": config.student}), responses, reads, classes, show_progress)
        for name, other in others
    ]
    prompts = {r.prompt for r in responses}
    report = CalibrationReport(
        calibration=calibration,
        scores=judge.profile.scores,
        reads=judge.profile.reads,
        trained_on=judge.profile.trained_on,
        seed=config.run.seed,
        num_prompts=len(prompts),
        num_fitted_prompts=(len(prompts) + 1) // 2,
        num_responses=len(responses),
        num_right=sum(r.right for r in responses),
        num_unchecked=grading.responses - grading.graded,
        grading=grading,
        classes=figures,
        others=tuple(compared),
        made_with=versions(),
    )
    write_json(_folder(config) / "calibration.json", report)
    return report


def _reads(
    judge: Judge, responses: Sequence[CheckedResponse], positions: StepPositions, show_progress: ShowProgress
) -> tuple[Reads, IntArray]:
    """The judge's scores beside what they should say, and the class of each token."""
    logit = _score(judge, responses, "calibrate", show_progress)
    lengths = [len(r.ids) for r in responses]
    classes = np.concatenate([positions.classes(r.ids) for r in responses])
    if judge.profile.scores == "step":
        # All tokens of a step have its score: one read a step.
        classes[classes != 0] = NOT_TEXT
    reads = Reads(
        logit=logit.astype(np.float64),
        right=np.repeat([r.right for r in responses], lengths),
        response=np.repeat(np.arange(len(responses)), lengths),
        prompt=np.repeat([r.prompt for r in responses], lengths),
    )
    return reads, classes


def _compare(
    name: str,
    config: Config,
    responses: Sequence[CheckedResponse],
    reads: Reads,
    classes: IntArray,
    show_progress: ShowProgress,
) -> OtherJudge:
    other = load(config)
    shared = np.where(classes == 0, 0, NOT_TEXT) if other.profile.scores == "step" else classes
    logits = _score(other, responses, f"judge {name}", show_progress).astype(np.float64)
    return OtherJudge(
        name=name,
        family=other.profile.family,
        judge=other.profile.fingerprint,
        classes=agreement(reads.logit, logits, shared),
    )


def run_processbench(
    config: Config,
    judge: Judge,
    files: Sequence[Path],
    *,
    threshold: float,
    max_items: int | None,
    show_progress: ShowProgress,
) -> list[BenchFigures]:
    """The judge's first errors against the labelled ones; RUN/calibration/processbench.json."""
    results = []
    for file in files:
        items = read_processbench(file, max_items=max_items)
        with show_progress(file.stem, len(items), "items") as progress:
            results.append(judge_items(judge, file.stem, items, threshold=threshold, on_batch=progress.advance))
    facts = {"judge": judge.profile.fingerprint, "family": judge.profile.family, "made_with": versions()}
    write_json(_folder(config) / "processbench.json", {**facts, "files": [figures.model_dump() for figures in results]})
    return results


def _folder(config: Config) -> Path:
    folder = config.run.dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _score(judge: Judge, responses: Sequence[CheckedResponse], stage: str, show_progress: ShowProgress) -> FloatArray:
    """Logit of every token of every response."""
    logits = []
    with show_progress(stage, len(responses), "responses") as progress:
        for start in range(0, len(responses), _BATCH):
            batch = responses[start : start + _BATCH]
            ids = tuple(r.ids for r in batch)
            request = JudgeRequest(questions=tuple(r.question for r in batch), responses=ids, proposals=ids)
            try:
                logits.append(judge.score(request).trunk_logit)
            except ModelError:
                logits += [_score_one(judge, response) for response in batch]
            progress.advance(len(batch))
    return np.concatenate(logits)


def _score_one(judge: Judge, response: CheckedResponse) -> FloatArray:
    """Logit of every token, NaN where the judge cannot read the response."""
    request = JudgeRequest(questions=(response.question,), responses=(response.ids,), proposals=(response.ids,))
    try:
        return judge.score(request).trunk_logit
    except ModelError as error:
        print(f"left out: {error}", file=sys.stderr)
        return np.full(len(response.ids), np.nan, dtype=np.float32)
