"""Which benchmarks jobs.evaluate runs, and by whose rules: own suites, instruction following, lm-evaluation-harness."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.reads import refuse_idle
from vcrd_ray.config import Config
from vcrd_ray.evaluation.suites import SUITES, suite_runs

if TYPE_CHECKING:
    from vcrd_ray.evaluation.results import Backend

INSTRUCT = "instruct"


def run_benchmarks(config: Config, suites: Sequence[str], directory: Path, *, backend: Backend) -> None:
    """Evaluate `evaluate.model` on benchmark suites in a run's directory, and print tables."""
    from jobs.harness import run_harness
    from jobs.instruct import run_instruct
    from jobs.suites import run_suites
    from vcrd_ray.evaluation import tables
    from vcrd_ray.evaluation.instruct import tables as instruct_tables

    model = config.evaluate.model
    assert model is not None
    if backend == "lm-eval":
        tables.show(run_harness(config, model, suites, directory))
        return
    graded = [suite for suite in SUITES if suite in suites]
    if graded:
        tables.show(run_suites(config, model, graded, directory))
    if INSTRUCT in suites:
        instruct_tables.show(run_instruct(config, model, directory))


def check_given(flags: argparse.Namespace) -> None:
    """Refuse keys of benchmarks that were not asked for, and of a model that is not the one evaluated.

    Raises:
        ConfigError: one stands on the command line.
    """
    if flags.model:
        refuse_idle(flags, "evaluate.model", "with --model")
    if flags.model or "evaluate.model" in flags.given:
        refuse_idle(flags, "student", "where another model is evaluated")
    harness = flags.backend == "lm-eval"
    for suite in (*SUITES, INSTRUCT):
        if harness or suite not in flags.suites:
            refuse_idle(
                flags, f"evaluate.{suite}", "with --backend lm-eval" if harness else f"without --suites {suite}"
            )
    if not harness:
        refuse_idle(flags, "evaluate.lm_eval", "without --backend lm-eval")
    if harness or flags.suites:
        refuse_idle(flags, "evaluate.prompts", "with benchmarks")
        refuse_idle(flags, "evaluate.sampling", "with benchmarks")


def print_questions(config: Config, suites: Sequence[str], backend: Backend) -> bool:
    """How many questions each benchmark would ask; False where none was asked for."""
    if backend == "lm-eval":
        from vcrd_ray.evaluation.harness_files import harness_tasks

        print(f"lm-eval: {', '.join(harness_tasks(config, suites))}")
        return True
    for one in suite_runs(config, [suite for suite in SUITES if suite in suites]):
        print(f"{one.suite} {one.benchmark.name}: {one.benchmark.num_questions} questions")
    if INSTRUCT in suites:
        from vcrd_ray.evaluation.instruct.questions import read_sets

        for questions in read_sets(config):
            print(f"{INSTRUCT} {questions.name}: {len(questions.items)} questions")
    return bool(suites)
