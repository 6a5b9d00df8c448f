"""Benchmarks on Ray: engines answer, graders judge what is finished meanwhile, and everything is kept.

<folder>/SUITE/SET/answers/batch-00000.jsonl ...   responses
<folder>/SUITE/SET/grades/batch-00000.jsonl ...    their verdicts
<folder>/results.json   figures in the shape of lm-evaluation-harness; figures.json   with intervals, verdicts, pass@k
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.progress import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.evaluation.suites import (
    Suite,
    SuiteRun,
    check_backend,
    no_room_answers,
    num_positions,
    suite_runs,
    write_questions,
)

if TYPE_CHECKING:
    from actors.pools.pool import Pool
    from vcrd_ray.evaluation.results import BenchmarkFigures


def run_suites(config: Config, model: str, suites: Sequence[Suite], folder: Path) -> list[BenchmarkFigures]:
    """Evaluate a checkpoint; finished batches and verdicts in `folder` are not repeated."""
    from actors.cluster import ray_cluster
    from actors.pools.launch import engine_pool
    from vcrd_ray.evaluation.results import harness_results, write_results
    from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

    check_backend(folder, "own")
    runs = suite_runs(config, suites)
    tokenizer, started = load_tokenizer(resolve_model(model)), time.perf_counter()
    graders = ThreadPoolExecutor(1, thread_name_prefix="grader")
    try:
        with ray_cluster(config):
            pool = engine_pool(config, path=model, role="evaluation", replicas=config.evaluate.replicas)
            try:
                pool.wait_ready(config.cluster.start_timeout_s)
                for run in runs:
                    _answer(config, model, pool, run, tokenizer, folder / run.suite / run.benchmark.name, graders)
            finally:
                pool.stop()
        answered = time.perf_counter()
        figures = [run.figures(confidence=config.evaluate.confidence) for run in runs]
    finally:
        graders.shutdown(cancel_futures=True)
        for run in runs:
            run.benchmark.close()
    ended = time.perf_counter()
    # From the end of the cluster on: what the graders had not caught up with.
    speeds = {run.benchmark.name: {**run.speed, "graders_behind_s": ended - answered} for run in runs}
    settings = config.evaluate.model_dump(mode="json", include={str(suite) for suite in suites})
    results = harness_results(figures, model=model, settings=settings, seconds=ended - started)
    write_results(folder, "own", figures, speeds, results)
    return figures


def _answer(
    config: Config, model: str, pool: Pool, run: SuiteRun, tokenizer: Any, folder: Path, graders: ThreadPoolExecutor
) -> None:
    """Have all questions of a benchmark answered, and hand each finished batch to the graders."""
    from actors.answers import answer_all

    benchmark = run.benchmark
    prompts = benchmark.prompts(tokenizer)
    room = num_positions(config, model) - benchmark.sampling.max_new_tokens
    run.asked(prompts, tokenizer)
    write_questions(folder, benchmark, prompts)
    total, started = len(prompts) * benchmark.samples, time.perf_counter()
    with StageProgress(benchmark.name, total, "answers") as progress:
        batches = answer_all(
            pool,
            [prompt for prompt in prompts if len(prompt.ids) <= room],
            samples=benchmark.samples,
            sampling=benchmark.sampling,
            tokenizer=tokenizer,
            batch_size=config.evaluate.batch_size,
            directory=folder / "answers",
        )
        for batch in batches:
            if batch.kept:
                run.kept_answers += len(batch.answers)
            else:
                run.num_tokens += batch.num_tokens
            run.cut_off += sum(answer.finish_reason == "length" for answer in batch.answers)
            run.grade(graders, batch.answers, folder / "grades" / f"batch-{batch.index:05d}.jsonl")
            speed = run.num_tokens / (time.perf_counter() - started)
            progress.advance(len(batch.answers), f"{speed:.0f} tokens/s")
        unasked = no_room_answers([prompt for prompt in prompts if len(prompt.ids) > room], benchmark.samples)
        run.no_room = len(unasked)
        if unasked:
            run.grade(graders, unasked, folder / "grades" / "no-room.jsonl")
            progress.advance(len(unasked), "no room for an answer")
    run.seconds = time.perf_counter() - started
