"""Greedy pass@1 of a checkpoint on held-out problems, with a Wilson interval; samples are kept.

    python -m jobs.evaluate --config FILE --evaluate.model PATH [--label NAME] [--dry-run]

Leaves RUN/evaluate-LABEL/result.json and samples. Run again after a kill, it answers only the missing batches.
"""

from __future__ import annotations

import argparse
import json
import time

from jobs.cli import load_config, run_main
from jobs.common import StageProgress, check_prompts, print_dry_run
from vcrd_ray.config import Config
from vcrd_ray.evaluation.statistics import Accuracy, accuracy
from vcrd_ray.runs import RunDirectory, write_json

SECTIONS = ("run", "cluster", "world", "prompt", "evaluate")


def check(config: Config, *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    from vcrd_ray.models import is_on_hub, load_tokenizer, resolve_model

    check_prompts(config.evaluate.prompts, fetch=fetch)
    model = config.evaluate.model or config.student.path
    if fetch or not is_on_hub(model):
        load_tokenizer(resolve_model(model))


def run(config: Config, *, label: str) -> Accuracy:
    """Evaluate `evaluate.model` (default: the student) in RUN/evaluate-LABEL."""
    from actors.cluster import ray_cluster
    from actors.generation import answer_prompts
    from vcrd_ray.data.problems import read_problems, tokenize_prompts, write_rejects
    from vcrd_ray.models import load_tokenizer, resolve_model

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


def main(argv: list[str]) -> int:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--label", default="model", help="name of the result's folder")
    config, flags = load_config("evaluate", "Greedy pass@1 on held-out problems.", argv, extra=extra)
    if flags.dry_run:
        check(config, fetch=False)
        print_dry_run(config, SECTIONS, actors=False)
        return 0
    figures = run(config, label=flags.label)
    print(f"{flags.label}: pass@1 {figures} on {figures.total} problems")
    return 0


if __name__ == "__main__":
    run_main(main)
