"""pass@1 of a checkpoint on held-out problems of your own or on benchmarks, with intervals; samples are kept.

    python -m jobs.evaluate --config FILE --model PATH [--suites math code instruct] [--label NAME] [--dry-run]
    python -m jobs.evaluate --config FILE --model PATH --backend lm-eval [--suites math] [--evaluate.lm_eval.tasks T ...]

Leaves RUN/evaluate-LABEL/result.json and samples; with --suites RUN/evaluate-LABEL/results.json (in the shape of
lm-evaluation-harness), figures.json, instruct.json, and every answer with its verdicts; with --backend lm-eval the same by
that library. Run again after a kill, it does what is missing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from jobs.cli import load_config, run_main
from jobs.common import StageProgress, check_prompts, print_dry_run
from jobs.suites import SUITES, harness_tasks, make_benchmarks, run_harness, run_suites
from vcrd_ray.config import Config
from vcrd_ray.data.accuracy import Accuracy, accuracy
from vcrd_ray.runs.directory import RunDirectory
from vcrd_ray.runs.files import write_json

if TYPE_CHECKING:
    from vcrd_ray.evaluation.results import Backend, BenchmarkFigures

INSTRUCT = "instruct"
SECTIONS = ("run", "cluster", "world", "prompt", "evaluate")


def check(config: Config, *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    from vcrd_ray.models.checkpoint_files import load_tokenizer, must_be_fetched, resolve_model

    check_prompts(config.evaluate.prompts, fetch=fetch)
    model = config.evaluate.model or config.student.path
    if fetch or not must_be_fetched(model):
        load_tokenizer(resolve_model(model))


def run(config: Config, *, label: str) -> Accuracy:
    """Evaluate `evaluate.model` (default: the student) in RUN/evaluate-LABEL."""
    from actors.cluster import ray_cluster
    from actors.generation import answer_prompts
    from vcrd_ray.data.problems import read_problems, tokenize_prompts, write_rejects
    from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

    model = config.evaluate.model or config.student.path
    resolved = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"model": model})})
    with RunDirectory(config.run.dir, f"evaluate-{label}", resolved, sections=SECTIONS) as directory:
        result = directory.path / "result.json"
        if result.exists():
            return Accuracy(**{k: v for k, v in json.loads(result.read_text()).items() if k in Accuracy.model_fields})
        check(resolved)
        tokenizer = load_tokenizer(resolve_model(model))
        problems, bad_rows = read_problems(config.evaluate.prompts, config.world)
        # Prompts that leave no room for an answer cannot be passed over in an evaluation: they count as wrong.
        prompts, _ = tokenize_prompts(problems, tokenizer, prompt=config.prompt, max_length=2**31)
        write_rejects(directory.path / "rejects.jsonl", bad_rows)
        started = time.perf_counter()
        with ray_cluster(config), StageProgress(f"evaluate {label}", len(prompts), "problems") as progress:
            correct, cut = answer_prompts(config, model, directory.path / "samples", prompts, on_batch=progress.advance)
        figures = accuracy(correct=correct, total=len(prompts), confidence=config.evaluate.confidence)
        facts = {"label": label, "model": model, "cut_off": cut, "seconds": time.perf_counter() - started}
        write_json(result, {**figures.model_dump(), **facts})
        return figures


def run_benchmarks(config: Config, suites: Sequence[str], *, label: str, backend: Backend) -> None:
    """Evaluate `evaluate.model` (default: the student) on benchmark suites in RUN/evaluate-LABEL, and print tables."""
    from jobs.instruct import run_instruct, show_instruct

    model = config.evaluate.model or config.student.path
    resolved = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"model": model})})
    with RunDirectory(config.run.dir, f"evaluate-{label}", resolved, sections=SECTIONS) as directory:
        if backend == "lm-eval":
            show(run_harness(resolved, model, suites, directory.path))
            return
        graded = [suite for suite in SUITES if suite in suites]
        if graded:
            show(run_suites(resolved, model, graded, directory.path))
        if INSTRUCT in suites:
            show_instruct(run_instruct(resolved, model, directory.path))


def show(figures: Sequence[BenchmarkFigures]) -> None:
    """A table of benchmarks: each metric with its interval."""
    table = Table(title="pass@1")
    for heading in ("set", "metric", "pass@1", "interval", "questions", "cut off", "no room"):
        table.add_column(heading, justify="left" if heading in ("set", "metric") else "right")
    for one in figures:
        for metric in one.metrics:
            table.add_row(
                one.name,
                metric.metric,
                f"{100 * metric.value:.1f}%",
                f"{100 * metric.low:.1f} to {100 * metric.high:.1f}%",
                str(one.num_questions),
                str(one.cut_off),
                str(one.no_room),
            )
    Console(width=110).print(table)


def main(argv: list[str]) -> int:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--label", default="model", help="name of the result's folder")
    extra.add_argument("--model", help="checkpoint to evaluate: short for --evaluate.model")
    extra.add_argument(
        "--suites", nargs="+", choices=(*SUITES, INSTRUCT), default=[], help="benchmarks (default: evaluate.prompts)"
    )
    extra.add_argument(
        "--backend",
        choices=("own", "lm-eval"),
        default="own",
        help="lm-eval: lm-evaluation-harness asks and grades its own tasks (default: %(default)s)",
    )
    config, flags = load_config("evaluate", "pass@1 on held-out problems or benchmarks.", argv, extra=extra)
    if flags.model:
        section = config.evaluate.model_copy(update={"model": flags.model})
        config = config.model_copy(update={"evaluate": section})
    if flags.dry_run:
        _dry_run(config, flags.suites, flags.backend)
        return 0
    if flags.suites or flags.backend == "lm-eval":
        run_benchmarks(config, flags.suites, label=flags.label, backend=flags.backend)
        return 0
    figures = run(config, label=flags.label)
    print(f"{flags.label}: pass@1 {figures} on {figures.total} problems")
    return 0


def _dry_run(config: Config, suites: Sequence[str], backend: Backend) -> None:
    if backend == "lm-eval":
        print(f"lm-eval: {', '.join(harness_tasks(config, suites))}")
    elif suites:
        for one in make_benchmarks(config, [suite for suite in SUITES if suite in suites]):
            print(f"{one.suite} {one.benchmark.name}: {one.benchmark.num_questions} questions")
        if INSTRUCT in suites:
            from jobs.instruct import read_sets

            for questions in read_sets(config):
                print(f"{INSTRUCT} {questions.name}: {len(questions.items)} questions")
    else:
        check(config, fetch=False)
    print_dry_run(config, SECTIONS, actors=False)


if __name__ == "__main__":
    run_main(main)
