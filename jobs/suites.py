"""Benchmarks on Ray: engines answer, graders judge what is finished meanwhile, and everything is kept.

<folder>/SUITE/SET/answers/batch-00000.jsonl ...   responses
<folder>/SUITE/SET/grades/batch-00000.jsonl ...    their verdicts
<folder>/results.json   figures in the shape of lm-evaluation-harness; figures.json   with intervals, verdicts, pass@k
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs.common import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.runs import read_jsonl, write_json, write_text

if TYPE_CHECKING:
    from actors.pools import Pool
    from vcrd_ray.evaluation.answers import Answer, Benchmark, Graded
    from vcrd_ray.evaluation.results import BenchmarkFigures
    from vcrd_ray.types import Prompt

Suite = Literal["math", "code"]
SUITES: tuple[Suite, ...] = ("math", "code")


@dataclass(kw_only=True)
class _Running:
    """A benchmark whose answers have been asked for."""

    suite: Suite
    benchmark: Benchmark
    ks: Sequence[int]
    grades: list[Future[list[Graded]]] = field(default_factory=list)
    num_tokens: int = 0
    cut_off: int = 0
    no_room: int = 0
    seconds: float = 0.0


def make_benchmarks(config: Config, suites: Sequence[Suite]) -> list[_Running]:
    """All sets of the suites, read and checked.

    Raises:
        DataError: a file is missing or malformed.
        ConfigError: a library that grades is not installed.
    """
    found: list[_Running] = []
    if "math" in suites:
        from vcrd_ray.evaluation.math.benchmark import math_benchmarks

        section = config.evaluate.math
        found += [_Running(suite="math", benchmark=b, ks=section.ks) for b in math_benchmarks(section, config.prompt)]
    if "code" in suites:
        from vcrd_ray.evaluation.code.benchmark import code_benchmarks

        found += [
            _Running(suite="code", benchmark=b, ks=config.evaluate.code.ks)
            for b in code_benchmarks(config.evaluate.code)
        ]
    return found


def run_suites(config: Config, model: str, suites: Sequence[Suite], folder: Path) -> list[BenchmarkFigures]:
    """Evaluate a checkpoint; finished batches and verdicts in `folder` are not repeated."""
    from actors.cluster import ray_cluster
    from actors.pools import engine_pool
    from vcrd_ray.evaluation.results import harness_results, summarize
    from vcrd_ray.models import load_tokenizer, resolve_model

    running = make_benchmarks(config, suites)
    tokenizer, started = load_tokenizer(resolve_model(model)), time.perf_counter()
    graders = ThreadPoolExecutor(1, thread_name_prefix="grader")
    try:
        with ray_cluster(config):
            pool = engine_pool(config, path=model, role="evaluation", replicas=config.evaluate.replicas)
            try:
                pool.wait_ready(config.cluster.start_timeout_s)
                for one in running:
                    _answer(config, model, pool, one, tokenizer, folder / one.suite / one.benchmark.name, graders)
            finally:
                pool.stop()
        figures = [
            summarize(
                one.benchmark.name,
                [row for future in one.grades for row in future.result()],
                metrics=one.benchmark.metrics,
                samples=one.benchmark.samples,
                ks=one.ks,
                cut_off=one.cut_off,
                no_room=one.no_room,
                confidence=config.evaluate.confidence,
            )
            for one in running
        ]
    finally:
        graders.shutdown(cancel_futures=True)
        for one in running:
            one.benchmark.close()
    seconds = time.perf_counter() - started
    speeds = {
        one.benchmark.name: {
            "tokens": one.num_tokens,
            "seconds": one.seconds,
            "tokens_per_s": one.num_tokens / one.seconds,
        }
        for one in running
    }
    write_json(folder / "figures.json", {"sets": [f.model_dump(mode="json") for f in figures], "generation": speeds})
    settings = config.evaluate.model_dump(mode="json", include={str(suite) for suite in suites})
    write_json(folder / "results.json", harness_results(figures, model=model, settings=settings, seconds=seconds))
    return figures


def _answer(
    config: Config, model: str, pool: Pool, one: _Running, tokenizer: Any, folder: Path, graders: ThreadPoolExecutor
) -> None:
    """Have all questions of a benchmark answered, and hand each finished batch to the graders."""
    from actors.answers import answer_all
    from vcrd_ray.evaluation.answers import Answer

    benchmark = one.benchmark
    prompts = benchmark.prompts(tokenizer)
    room = _positions(config, model) - benchmark.sampling.max_new_tokens
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= room]
    _write_questions(folder, benchmark, prompts)
    total, started = len(prompts) * benchmark.samples, time.perf_counter()
    with StageProgress(benchmark.name, total, "answers") as progress:
        batches = answer_all(
            pool,
            fitting,
            samples=benchmark.samples,
            sampling=benchmark.sampling,
            tokenizer=tokenizer,
            batch_size=config.evaluate.batch_size,
            directory=folder / "answers",
        )
        for index, answers in batches:
            one.num_tokens += sum(answer.num_tokens for answer in answers)
            one.cut_off += sum(answer.finish_reason == "length" for answer in answers)
            one.grades.append(
                graders.submit(_grade, benchmark, answers, folder / "grades" / f"batch-{index:05d}.jsonl")
            )
            speed = one.num_tokens / (time.perf_counter() - started)
            progress.advance(len(answers), f"{speed:.0f} tokens/s")
        # A question that leaves no room for an answer cannot be passed over: it counts as answered by nothing.
        unasked = [
            Answer(id=prompt.id, sample=sample, text="", num_tokens=0, finish_reason="no_room")
            for prompt in prompts
            if len(prompt.ids) > room
            for sample in range(benchmark.samples)
        ]
        one.no_room = len(unasked)
        if unasked:
            one.grades.append(graders.submit(_grade, benchmark, unasked, folder / "grades" / "no-room.jsonl"))
            progress.advance(len(unasked), "no room for an answer")
    one.seconds = time.perf_counter() - started


def _grade(benchmark: Benchmark, answers: Sequence[Answer], file: Path) -> list[Graded]:
    from vcrd_ray.evaluation.answers import Graded

    if file.exists():
        return [Graded.model_validate(row) for row in read_jsonl(file)]
    graded = benchmark.grade(answers)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(row.model_dump()) + "\n" for row in graded))
    return graded


def _write_questions(folder: Path, benchmark: Benchmark, prompts: Sequence[Prompt]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({"id": p.id, "question": p.question, "gold": benchmark.gold(p.id)} for p in prompts)
    write_text(folder / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _positions(config: Config, model: str) -> int:
    """Longest prompt plus response."""
    from vcrd_ray.models import resolve_model

    content = json.loads((resolve_model(model) / "config.json").read_text(encoding="utf-8"))
    positions = int(content.get("max_position_embeddings", 2**31))
    limit = config.teacher.vllm.max_model_len if config.teacher.engine == "vllm" else None
    return min(positions, limit or positions)
