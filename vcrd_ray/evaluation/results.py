"""Graded answers of a benchmark -> its figures and their files, in the shape of lm-evaluation-harness. Knows no models."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vcrd_ray.data.accuracy import accuracy
from vcrd_ray.evaluation.answers import Graded
from vcrd_ray.evaluation.math.passk import Samples, mean_mean_at_k, mean_pass_at_k
from vcrd_ray.evaluation.statistics import mean_interval
from vcrd_ray.runs.files import write_json

Backend = Literal["own", "lm-eval"]
"""Whose prompts and rules of grading."""


class MetricFigures(BaseModel):
    """One metric of one benchmark."""

    model_config = ConfigDict(frozen=True)

    metric: str
    value: float
    """Mean over questions of the share of right answers: greedy pass@1 with one answer each."""
    low: float
    high: float
    """Wilson interval with one answer each, else percentiles of a bootstrap over questions."""
    num_correct: int
    num_answers: int
    num_correct_whole: int | None = None
    """Were thinking read as part of the answer; None: made by an earlier version."""
    pass_at: dict[int, float]
    """Unbiased pass@k."""
    mean_at: dict[int, float]
    verdicts: dict[str, int]
    """How often each verdict was given."""


class BenchmarkFigures(BaseModel):
    """One benchmark."""

    model_config = ConfigDict(frozen=True)

    name: str
    num_questions: int
    samples: int
    metrics: tuple[MetricFigures, ...]
    """The first one is the headline."""
    cut_off: int
    """Answers that ended at the length limit."""
    thought: int = 0
    """Answers with thinking before them, which was taken off."""
    unfinished: int = 0
    """Thinking that did not end, so that there is no answer: wrong."""
    no_room: int
    """Answers that could not be asked for, because the prompt and the longest answer do not fit the model: they are wrong."""
    graders_differ: int
    """Answers on which the metrics do not agree."""


def summarize(
    name: str,
    graded: Sequence[Graded],
    *,
    metrics: Sequence[str],
    samples: int,
    ks: Sequence[int],
    cut_off: int,
    no_room: int,
    confidence: float,
) -> BenchmarkFigures:
    """All figures of a benchmark."""
    by_question: dict[str, list[Graded]] = defaultdict(list)
    for row in graded:
        by_question[row.id].append(row)
    return BenchmarkFigures(
        name=name,
        num_questions=len(by_question),
        samples=samples,
        metrics=tuple(_metric(metric, by_question, ks=ks, confidence=confidence) for metric in metrics),
        cut_off=cut_off,
        thought=sum(row.thinking == "finished" for row in graded),
        unfinished=sum(row.thinking == "unfinished" for row in graded),
        no_room=no_room,
        graders_differ=sum(len(set(row.correct.values())) > 1 for row in graded),
    )


def _metric(
    metric: str, by_question: Mapping[str, Sequence[Graded]], *, ks: Sequence[int], confidence: float
) -> MetricFigures:
    counts = [
        Samples(num_samples=len(rows), num_correct=sum(row.correct[metric] for row in rows))
        for rows in by_question.values()
    ]
    correct, total = sum(c.num_correct for c in counts), sum(c.num_samples for c in counts)
    if total == len(counts):
        wilson = accuracy(correct=correct, total=total, confidence=confidence)
        value, low, high = wilson.pass_at_1, wilson.low, wilson.high
    else:
        # Answers to one question are alike: questions, not answers, are what is drawn again.
        shares = [c.num_correct / c.num_samples for c in counts]
        value = sum(shares) / len(shares)
        low, high = mean_interval(shares, confidence=confidence)
    return MetricFigures(
        metric=metric,
        value=value,
        low=low,
        high=high,
        num_correct=correct,
        num_answers=total,
        num_correct_whole=sum(
            row.correct_whole.get(metric, row.correct[metric]) for rows in by_question.values() for row in rows
        ),
        pass_at={k: mean_pass_at_k(counts, k) for k in ks},
        mean_at={k: mean_mean_at_k(counts, k) for k in ks},
        verdicts=dict(sorted(Counter(row.verdict[metric] for rows in by_question.values() for row in rows).items())),
    )


def harness_results(
    figures: Sequence[BenchmarkFigures], *, model: str, settings: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """The same as lm-evaluation-harness writes its results, so that tools for those read them."""
    results: dict[str, dict[str, Any]] = {}
    for benchmark in figures:
        row: dict[str, Any] = {"alias": benchmark.name}
        for metric in benchmark.metrics:
            spread = sqrt(metric.value * (1 - metric.value) / max(1, benchmark.num_questions))
            row[f"pass@1,{metric.metric}"] = metric.value
            row[f"pass@1_stderr,{metric.metric}"] = spread
            row |= {f"pass@{k},{metric.metric}": value for k, value in metric.pass_at.items() if k > 1}
        results[benchmark.name] = row
    return {
        "results": results,
        "n-samples": {b.name: {"original": b.num_questions, "effective": b.num_questions} for b in figures},
        "configs": {b.name: {"task": b.name, "repeats": b.samples} for b in figures},
        "config": {"model": "vcrd_ray", "model_args": model, **settings},
        "model_name": model,
        "total_evaluation_time_seconds": str(seconds),
    }


def write_results(
    folder: Path,
    backend: Backend,
    figures: Sequence[BenchmarkFigures],
    speeds: Mapping[str, Mapping[str, float]],
    results: dict[str, Any],
) -> None:
    """figures.json and results.json; figures of suites that an earlier command evaluated stay in them."""
    sets = {one.name: one.model_dump(mode="json") for one in figures}
    new: dict[str, Any] = {"backend": backend, "sets": sets, "generation": dict(speeds)}
    file = folder / "figures.json"
    if file.exists():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        new = merged(earlier | {"sets": {one["name"]: one for one in earlier["sets"]}}, new)
    write_json(file, new | {"sets": list(new["sets"].values())})
    file, results = folder / "results.json", {"backend": backend, **results}
    write_json(file, merged(json.loads(file.read_text(encoding="utf-8")), results) if file.exists() else results)


def merged(earlier: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new one, with what only the earlier one has, two levels deep."""
    both = {key: {**earlier[key], **new[key]} for key in earlier.keys() & new.keys() if isinstance(new[key], dict)}
    return {**earlier, **new, **both}
