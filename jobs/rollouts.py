"""Offline rollouts: one response of the teacher and one of the student to each prompt, made once and kept.

    python -m jobs.rollouts --config FILE [--section.key value ...] [--dry-run]

Leaves RUN/rollouts (Parquet parts and a manifest). Run again after a kill, it makes only the missing blocks.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import load_config, run_main
from jobs.common import StageProgress, check_models, check_prompts, print_dry_run
from vcrd_ray.config import Config
from vcrd_ray.runs import RunDirectory, write_json
from vcrd_ray.types import Prompt

SECTIONS = ("run", "cluster", "world", "student", "teacher", "rollouts")


def check(config: Config, *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    check_prompts(config.rollouts.prompts)
    check_models(config, teacher=True, judge=False, fetch=fetch)


def run(config: Config) -> Path:
    """Make what is missing of the rollouts; their directory."""
    from actors.cluster import ray_cluster
    from actors.generation import generate_rollouts
    from vcrd_ray.data.problems import read_problems, tokenize_prompts, write_rejects
    from vcrd_ray.data.rollouts import Manifest, open_rollouts
    from vcrd_ray.models import load_tokenizer, model_fingerprint, resolve_model, tokenizer_fingerprint

    section = config.rollouts
    with RunDirectory(config.run.dir, "rollouts", config, sections=SECTIONS) as directory:
        check(config)
        tokenizer = load_tokenizer(resolve_model(config.student.path))
        problems, bad_rows = read_problems(section.prompts, config.world)
        prompts, too_long = tokenize_prompts(problems, tokenizer, max_length=section.max_prompt_length)
        write_rejects(directory.path / "rejects.jsonl", [*bad_rows, *too_long])
        blocks = [prompts[i : i + section.block_size] for i in range(0, len(prompts), section.block_size)]
        manifest = Manifest(
            teacher=model_fingerprint(resolve_model(config.teacher.path)),
            student=model_fingerprint(resolve_model(config.student.path)),
            tokenizer=tokenizer_fingerprint(tokenizer),
            seed=config.run.seed,
            sampling=section.sampling,
            num_prompts=len(prompts),
            num_rejects=len(bad_rows) + len(too_long),
            num_blocks=len(blocks),
            prompts=_digest(prompts),
        )
        missing = open_rollouts(directory.path, manifest)
        if not missing:
            return directory.path
        started = time.perf_counter()
        num_tokens = 0
        with ray_cluster(config), StageProgress("rollouts", len(prompts), "prompts") as progress:
            progress.advance(len(prompts) - sum(len(blocks[i]) for i in missing))

            def on_block(prompts_done: int, tokens: int) -> None:
                nonlocal num_tokens
                num_tokens += tokens
                progress.advance(prompts_done, f"{num_tokens / (time.perf_counter() - started):.0f} tokens/s")

            generate_rollouts(config, directory.path, [(i, blocks[i]) for i in missing], on_block=on_block)
        seconds = time.perf_counter() - started
        write_json(directory.path / "timing.json", {"seconds": seconds, "response_tokens": num_tokens})
        return directory.path


def _digest(prompts: Sequence[Prompt]) -> str:
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.id.encode() + b"\0" + prompt.ids.tobytes() + b"\0")
    return digest.hexdigest()[:16]


def main(argv: list[str]) -> int:
    config, flags = load_config("rollouts", "One response of teacher and student to each prompt, made once.", argv)
    if flags.dry_run:
        check(config, fetch=False)
        print_dry_run(config, SECTIONS, actors=False)
        return 0
    print(run(config))
    return 0


if __name__ == "__main__":
    run_main(main)
