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

from jobs.benchmarks import INSTRUCT, check_given, print_questions, run_benchmarks
from jobs.cli import load_config, run_main
from jobs.common import check_evaluated, check_golds, check_prompts, print_dry_run
from jobs.progress import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.data.accuracy import Accuracy, accuracy
from vcrd_ray.evaluation.suites import SUITES
from vcrd_ray.runs.directory import RunDirectory
from vcrd_ray.runs.files import write_json

SECTIONS = ("run", "cluster", "world", "prompt", "evaluate")


def check(config: Config, *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    section = config.evaluate
    check_prompts(section.prompts, fetch=fetch)
    check_golds(section.prompts, config.world, section.thinking, source="evaluate.prompts", fetch=fetch)
    check_evaluated(config, fetch=fetch)


def run(config: Config, *, label: str) -> Accuracy:
    """Evaluate `evaluate.model` (default: the student) in RUN/evaluate-LABEL."""
    from actors.cluster import ray_cluster
    from actors.held_out import answer_prompts
    from vcrd_ray.data.problems import read_problems, tokenize_prompts, write_rejects
    from vcrd_ray.grading.figures import grading_figures, say
    from vcrd_ray.grading.responses import ResponseGrader
    from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

    resolved = _resolved(config)
    model = resolved.evaluate.model or ""
    with RunDirectory(config.run.dir, f"evaluate-{label}", resolved, sections=SECTIONS) as directory:
        result = directory.path / "result.json"
        if result.exists():
            return Accuracy(**{k: v for k, v in json.loads(result.read_text()).items() if k in Accuracy.model_fields})
        check_evaluated(resolved)  # the problems and their golds are read here, and refused where they are
        tokenizer = load_tokenizer(resolve_model(model))
        problems, bad_rows = read_problems(config.evaluate.prompts, config.world)
        # Prompts that leave no room for an answer cannot be passed over in an evaluation: they count as wrong.
        prompts, unasked = tokenize_prompts(problems, tokenizer, prompt=config.prompt, max_length=2**31)
        golds = [prompt.gold for prompt in prompts]
        thinking, source = config.evaluate.thinking, "evaluate.prompts"
        grader = ResponseGrader(golds, thinking=thinking, source=source, cure=f"set {source}.answer_key")
        write_rejects(directory.path / "rejects.jsonl", [*bad_rows, *unasked, *grader.rejects(prompts)])
        with ray_cluster(config), StageProgress(f"evaluate {label}", len(prompts), "problems") as progress:
            started = time.perf_counter()
            samples = directory.path / "samples"
            checked = answer_prompts(config, model, samples, prompts, grader=grader, on_batch=progress.advance)
        graded = grading_figures(checked, grader)
        say(label, graded)
        figures = accuracy(correct=graded.right, total=graded.graded, confidence=config.evaluate.confidence)
        facts = {"label": label, "model": model, "cut_off": graded.cut_off, "grading": graded.model_dump(mode="json")}
        write_json(result, {**figures.model_dump(), **facts, "seconds": time.perf_counter() - started})
        return figures


def _resolved(config: Config) -> Config:
    """With the model that is evaluated named."""
    model = config.evaluate.model or config.student.path
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"model": model})})


def _flags() -> argparse.ArgumentParser:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--label", default="model", help="name of the result's folder")
    extra.add_argument("--model", help="checkpoint to evaluate: short for --evaluate.model")
    extra.add_argument(
        "--suites", nargs="+", choices=(*SUITES, INSTRUCT), default=[], help="benchmarks (default: evaluate.prompts)"
    )
    asked_by = "lm-eval: that library asks and grades its own tasks (default: %(default)s)"
    extra.add_argument("--backend", choices=("own", "lm-eval"), default="own", help=asked_by)
    return extra


def main(argv: list[str]) -> int:
    config, flags = load_config(
        "evaluate", "pass@1 on held-out problems or benchmarks.", argv, extra=_flags(), any_key=False
    )
    check_given(flags)
    if flags.model:
        section = config.evaluate.model_copy(update={"model": flags.model})
        config = config.model_copy(update={"evaluate": section})
    if flags.dry_run:
        if print_questions(config, flags.suites, flags.backend):
            check_evaluated(config, fetch=False)
        else:
            check(config, fetch=False)
        # Engines are the teacher's.
        return print_dry_run(config, (*SECTIONS, "teacher"), actors=False)
    if flags.suites or flags.backend == "lm-eval":
        resolved = _resolved(config)
        check_evaluated(resolved)
        with RunDirectory(config.run.dir, f"evaluate-{flags.label}", resolved, sections=SECTIONS) as directory:
            run_benchmarks(resolved, flags.suites, directory.path, backend=flags.backend)
        return 0
    figures = run(config, label=flags.label)
    print(f"{flags.label}: pass@1 {figures} on {figures.total} problems")
    return 0


if __name__ == "__main__":
    run_main(main)
