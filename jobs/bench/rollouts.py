"""Tokens per second of the engines on one model, and through Ray Data.

Each engine is in a process of its own with as many threads; they take turns. Through Ray Data teacher and student respond
to the same prompts in blocks, with actors that start first: the start is counted apart, from the run's timing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any


def run(argv: list[str]) -> dict[str, Any]:
    """Medians of tokens per second, and seconds through Ray Data."""
    options = _parser().parse_args(argv)
    from jobs.hosted import HostedEngine
    from vcrd_ray.config.data import SamplingSection, TinyPrompts
    from vcrd_ray.config.models import TeacherSection, VllmSection
    from vcrd_ray.config.world import WorldConfig
    from vcrd_ray.data.problems import read_problems, tokenize_prompts
    from vcrd_ray.engines.loading import load_engine
    from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

    problems, _ = read_problems(TinyPrompts(seed=5, count=options.prompts), WorldConfig())
    prompts, _ = tokenize_prompts(problems, load_tokenizer(resolve_model(options.model)), max_length=512)
    sampling = SamplingSection(max_new_tokens=options.max_new_tokens)
    sections = {name: TeacherSection(engine=name, vllm=VllmSection(enforce_eager=True)) for name in options.engines}
    engines = {
        name: HostedEngine(partial(load_engine, section, options.model, use="generate"))
        for name, section in sections.items()
    }
    rates: dict[str, list[float]] = {name: [] for name in engines}
    try:
        for engine in engines.values():
            engine.wait_ready().generate(prompts[:8], sampling, seed=0)  # the first request compiles
        for repeat in range(options.repeats):
            for name, engine in engines.items():
                started = time.perf_counter()
                rollouts = engine.generate(prompts, sampling, seed=repeat)
                seconds = time.perf_counter() - started
                rates[name].append(sum(len(r.ids) for r in rollouts) / seconds)
    finally:
        for engine in engines.values():
            engine.stop()
    figures: dict[str, Any] = {
        "model": options.model,
        "prompts": options.prompts,
        "max_new_tokens": options.max_new_tokens,
        "repeats": options.repeats,
        **{f"{name}_tokens_per_s": statistics.median(found) for name, found in rates.items()},
        **{f"{name}_spread": [min(found), max(found)] for name, found in rates.items()},
    }
    if len(rates) == 2:
        figures["vllm_over_hf"] = figures["vllm_tokens_per_s"] / figures["hf_tokens_per_s"]
    for name in options.engines if options.ray_data else ():
        figures |= {f"ray_data_{name}_{key}": value for key, value in _through_ray_data(options, name).items()}
    return figures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench rollouts", description=__doc__)
    parser.add_argument("--model", default="tiny:teacher", help="what responds")
    parser.add_argument("--engines", nargs="+", choices=["hf", "vllm"], default=["hf", "vllm"])
    parser.add_argument("--prompts", type=int, default=256, help="prompts of one request")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest response")
    parser.add_argument("--repeats", type=int, default=5, help="requests to each engine")
    parser.add_argument(
        "--ray-data", action=argparse.BooleanOptionalAction, default=True, help="measure jobs.rollouts too"
    )
    return parser


def _through_ray_data(options: argparse.Namespace, engine: str) -> dict[str, float]:
    """Seconds of a whole `jobs.rollouts`, and how many of them the engines generated."""
    import json

    from jobs import rollouts
    from vcrd_ray.config import Config

    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "run": {"dir": folder},
                "teacher": {"path": options.model, "engine": engine, "vllm": {"enforce_eager": True}},
                "rollouts": {
                    "prompts": {"type": "tiny", "seed": 5, "count": options.prompts},
                    "sampling": {"max_new_tokens": options.max_new_tokens},
                    "block_size": options.prompts // 4,
                },
            }
        )
        started = time.perf_counter()
        directory = rollouts.run(config)
        seconds = time.perf_counter() - started
        timing = json.loads((Path(directory) / "timing.json").read_text())
    return {"whole_s": seconds, **{name: value for name, value in timing.items() if isinstance(value, int | float)}}
