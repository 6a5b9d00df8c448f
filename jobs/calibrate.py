"""Can the judge be trusted? Its scores on a run's rollouts against final correctness, and maps that calibrate them.

    python -m jobs.calibrate --config FILE [--other FILE ...] [--processbench FILE ...] [--section.key value ...] [--dry-run]

Reads the judge of the config, without its calibration, in this process. Leaves RUN/calibration/calibration.json, which
`judge.calibration` takes, and RUN/calibration/processbench.json. A second call replaces both.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from jobs.cli import load_config, run_main
from jobs.common import StageProgress, print_dry_run
from jobs.distill import rollouts_directory
from vcrd_ray.config import Config
from vcrd_ray.config.models import ModelJudge
from vcrd_ray.errors import ConfigError, DataError, ModelError
from vcrd_ray.runs.directory import versions
from vcrd_ray.runs.files import write_json

if TYPE_CHECKING:
    from vcrd_ray.evaluation.processbench import BenchFigures
    from vcrd_ray.judges import Judge
    from vcrd_ray.report.calibration import CalibrationReport, Method
    from vcrd_ray.report.run_data import CheckedResponse
    from vcrd_ray.types import FloatArray

SECTIONS = ("run", "world", "student", "judge")
FOLDER = "calibration"
_BATCH = 64  # responses of a request, so that progress can be shown


def check(config: Config, others: Sequence[Config], files: Sequence[Path], *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    from vcrd_ray.data.rollouts import read_manifest
    from vcrd_ray.judges.loading import check_judge_tokenizer
    from vcrd_ray.models.checkpoint_files import must_be_fetched

    for file in files:
        if not file.is_file():
            raise DataError(f"--processbench {file}: no such file")
    if not files or rollouts_directory(config).is_dir():
        read_manifest(rollouts_directory(config))
    for section in (config.judge, *(other.judge for other in others)):
        paths = [config.student.path, *([section.path] if isinstance(section, ModelJudge) else [])]
        if fetch or not any(must_be_fetched(path) for path in paths):
            check_judge_tokenizer(section, policy=config.student.path)


def load(config: Config) -> Judge:
    """The configured judge, uncalibrated, in this process."""
    import torch

    from vcrd_ray.judges.loading import load_judge

    torch.set_num_threads(config.judge.threads)
    return load_judge(config.judge.model_copy(update={"calibration": None}), policy=config.student.path)


def run(
    config: Config,
    *,
    method: Method,
    judge: Judge | None = None,
    max_rollouts: int | None = None,
    others: Sequence[tuple[str, Config]] = (),
) -> CalibrationReport:
    """Measure and fit on the run's rollouts, with a judge that is loaded already or the config's; writes calibration.json."""
    import numpy as np

    from vcrd_ray.judges.calibrated import NOT_TEXT, StepPositions
    from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
    from vcrd_ray.report.calibration import CalibrationReport, OtherJudge, Reads, agreement, calibrate
    from vcrd_ray.report.run_data import read_checked

    tokenizer = load_tokenizer(resolve_model(config.student.path))
    directory = rollouts_directory(config)
    responses, num_unchecked, rejects = read_checked(
        directory, tokenizer, max_length=config.distill.max_length, seed=config.run.seed
    )
    if rejects:
        print(f"{len(rejects)} pairs are left out; the first: {rejects[0].reason}", file=sys.stderr)
    responses = responses[:max_rollouts]
    judge = judge or load(config)
    logit = _score(judge, responses, "calibrate")
    lengths = [len(r.ids) for r in responses]
    positions = StepPositions(tokenizer)
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
    calibration, figures = calibrate(reads, classes, profile=judge.profile, method=method, seed=config.run.seed)
    compared = []
    for name, other_config in others:
        other = load(other_config.model_copy(update={"student": config.student}))
        shared = np.where(classes == 0, 0, NOT_TEXT) if other.profile.scores == "step" else classes
        logits = _score(other, responses, f"judge {name}").astype(np.float64)
        compared.append(
            OtherJudge(
                name=name,
                family=other.profile.family,
                judge=other.profile.fingerprint,
                classes=agreement(reads.logit, logits, shared),
            )
        )
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
        num_unchecked=num_unchecked,
        classes=figures,
        others=tuple(compared),
        made_with=versions(),
    )
    write_json(_folder(config) / "calibration.json", report)
    return report


def run_processbench(
    config: Config, judge: Judge, files: Sequence[Path], *, threshold: float, max_items: int | None
) -> list[BenchFigures]:
    """The judge's first errors against the labelled ones; RUN/calibration/processbench.json."""
    from vcrd_ray.evaluation.processbench import judge_items, read_processbench

    results = []
    for file in files:
        items = read_processbench(file, max_items=max_items)
        with StageProgress(file.stem, len(items), "items") as progress:
            results.append(judge_items(judge, file.stem, items, threshold=threshold, on_batch=progress.advance))
    facts = {"judge": judge.profile.fingerprint, "family": judge.profile.family, "made_with": versions()}
    write_json(_folder(config) / "processbench.json", {**facts, "files": [figures.model_dump() for figures in results]})
    return results


def _folder(config: Config) -> Path:
    folder = config.run.dir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _score(judge: Judge, responses: Sequence[CheckedResponse], stage: str) -> FloatArray:
    """Logit of every token of every response."""
    import numpy as np

    from vcrd_ray.types import JudgeRequest

    logits = []
    with StageProgress(stage, len(responses), "responses") as progress:
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
    import numpy as np

    from vcrd_ray.types import JudgeRequest

    request = JudgeRequest(questions=(response.question,), responses=(response.ids,), proposals=(response.ids,))
    try:
        return judge.score(request).trunk_logit
    except ModelError as error:
        print(f"left out: {error}", file=sys.stderr)
        return np.full(len(response.ids), np.nan, dtype=np.float32)


def show(report: CalibrationReport) -> None:
    """Table and verdict of a calibration."""
    from rich.console import Console
    from rich.table import Table

    from vcrd_ray.report.calibration import extrapolation, verdict

    title = f"{report.calibration.family} judge on {report.num_responses} responses, {report.num_right} of them right"
    table = Table(title=title)
    headings = ("position", "reads", "AUC", "95% interval", "mean score", "right", "ECE", "Brier")
    for heading in (*headings, "< 0.02", "> 0.98", "ECE held out", "calibrated"):
        table.add_column(heading, justify="left" if heading == "position" else "right")
    for name, row in report.classes.items():
        before, after = row.held_out_before, row.held_out_after
        table.add_row(
            name.replace("_", " "),
            f"{row.reads:,}",
            _shown(row.auc),
            "-" if row.auc_low is None or row.auc_high is None else f"{row.auc_low:.3f} to {row.auc_high:.3f}",
            f"{row.mean_score:.3f}",
            f"{row.share_right:.3f}",
            f"{row.quality.ece:.3f}",
            f"{row.quality.brier:.3f}",
            f"{100 * row.saturated_low:.1f}%",
            f"{100 * row.saturated_high:.1f}%",
            _shown(None if before is None else before.ece),
            _shown(None if after is None else after.ece),
        )
    Console(width=140).print(table)
    for other in report.others:
        for name, figures in other.classes.items():
            print(
                f"{other.name}, {name.replace('_', ' ')}: rank correlation {_shown(figures.spearman)}, same side of 0.5 at"
                f" {100 * figures.same_side:.1f}% of {figures.reads:,} positions"
            )
    notes = [f"{name.replace('_', ' ')}: {row.note}" for name, row in report.classes.items() if row.note]
    invalid = sum(row.invalid for row in report.classes.values())
    notes += [f"{invalid} scores were no numbers and are left out"] if invalid else []
    notes += [f"{report.num_unchecked} responses have no gold answer and are left out"] if report.num_unchecked else []
    for line in (*notes, verdict(report.classes), extrapolation(report)):
        if line:
            print(line)


def show_processbench(results: Sequence[BenchFigures]) -> None:
    """ProcessBench's table, a row a file."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"ProcessBench, first step with a score below {results[0].threshold:g}")
    for heading in ("file", "with error", "found", "without", "left alone", "F1", "skipped"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    for row in results:
        shares = ["-" if v is None else f"{100 * v:.1f}" for v in (row.error_accuracy, row.correct_accuracy, row.f1)]
        counts = (str(row.error_items), shares[0], str(row.correct_items), shares[1], shares[2], str(row.skipped))
        table.add_row(row.name, *counts)
    Console(width=100).print(table)
    for row in results:
        if row.skipped:
            print(f"{row.name}: {row.skipped} items skipped; the first is {row.skip_reason}")


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(argv: list[str]) -> int:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--method", choices=["isotonic", "temperature"], default="isotonic", help="kind of map")
    extra.add_argument("--max-rollouts", type=int, default=None, metavar="N", help="responses that are judged at most")
    extra.add_argument(
        "--other", type=Path, nargs="+", default=[], metavar="FILE", help="YAML files with a judge to compare with"
    )
    extra.add_argument(
        "--processbench", type=Path, nargs="+", default=[], metavar="FILE", help="ProcessBench files (JSON Lines)"
    )
    extra.add_argument("--threshold", type=float, default=0.5, help="score below which a step is wrong (default: 0.5)")
    extra.add_argument(
        "--max-items", type=int, default=None, metavar="N", help="items of each ProcessBench file at most"
    )
    extra.add_argument("--json", action="store_true", help="print the results as JSON, and nothing else")
    config, flags = load_config("calibrate", "What the judge's scores are worth.", argv, extra=extra)
    for name in ("max_rollouts", "max_items"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if not 0 < flags.threshold < 1:
        raise ConfigError(f"--threshold {flags.threshold}: must lie between 0 and 1")
    if flags.max_items is not None and not flags.processbench:
        raise ConfigError("--max-items has no effect without --processbench")
    if flags.other and not rollouts_directory(config).is_dir():
        raise ConfigError(f"--other compares judges on rollouts, and there are none in {rollouts_directory(config)}")
    others = [(file.stem, _other(file)) for file in flags.other]
    check(config, [other for _, other in others], flags.processbench, fetch=not flags.dry_run)
    if flags.dry_run:
        print_dry_run(config, SECTIONS, actors=False)
        return 0
    if config.judge.calibration is not None:
        print("judge.calibration is set; what is measured here is the judge without it", file=sys.stderr)
    judge = load(config)
    report: CalibrationReport | None = None
    results: list[BenchFigures] = []
    if rollouts_directory(config).is_dir():
        report = run(config, judge=judge, method=flags.method, max_rollouts=flags.max_rollouts, others=others)
    else:
        print(f"{rollouts_directory(config)}: no rollouts, so ProcessBench alone is run", file=sys.stderr)
    if flags.processbench:
        results = run_processbench(
            config, judge, flags.processbench, threshold=flags.threshold, max_items=flags.max_items
        )
    if flags.json:
        benches = [figures.model_dump(mode="json") for figures in results]
        shown = {"calibration": report and report.model_dump(mode="json"), "processbench": benches}
        print(json.dumps(shown, indent=2))
        return 0
    if report:
        show(report)
    if results:
        show_processbench(results)
    print((config.run.dir / FOLDER).resolve())
    return 0


def _other(file: Path) -> Config:
    config, _ = load_config("calibrate", "", ["--config", str(file)])
    if "judge" not in (yaml.safe_load(file.read_text(encoding="utf-8")) or {}):
        raise ConfigError(f"--other {file}: no judge: section in it")
    return config


if __name__ == "__main__":
    run_main(main)
