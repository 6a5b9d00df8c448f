"""Offline rollouts: responses of the teacher and of the student to each prompt, made once and kept.

    python -m jobs.rollouts --config FILE [--section.key value ...] [--dry-run]

Leaves RUN/rollouts (Parquet parts, a manifest, rejects, totals in timing.json, shares cut off and right in grading.json).
Run again after a kill, it makes only the missing blocks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from jobs.cli import load_config, run_main
from jobs.common import check_models, check_prompts, print_dry_run
from jobs.progress import StageProgress
from vcrd_ray.config import Config
from vcrd_ray.runs.directory import RunDirectory
from vcrd_ray.types import Prompt

SECTIONS = ("run", "cluster", "world", "prompt", "student", "teacher", "rollouts")


def check(config: Config, *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    check_prompts(config.rollouts.prompts, fetch=fetch)
    check_models(config, teacher=True, judge=False, fetch=fetch, use="generate")


def run(config: Config) -> Path:
    """Make what is missing of the rollouts; their directory."""
    from vcrd_ray.data.manifest import Manifest, ids_digest, prompts_digest, with_samples
    from vcrd_ray.data.problems import count_rejects, read_prompts, template_fingerprint, write_rejects
    from vcrd_ray.data.rollouts import TIMING, open_rollouts, write_timing
    from vcrd_ray.grading.figures import say
    from vcrd_ray.grading.rollouts import keep_grading
    from vcrd_ray.models.checkpoint_files import load_tokenizer, model_fingerprint, resolve_model, tokenizer_fingerprint
    from vcrd_ray.models.generation_config import stop_ids

    section = config.rollouts
    with RunDirectory(config.run.dir, "rollouts", config, sections=SECTIONS) as directory:
        check(config)
        tokenizer = load_tokenizer(resolve_model(config.student.path))
        prompts, rejects = read_prompts(section, config.prompt, config.world, tokenizer)
        write_rejects(directory.path / "rejects.jsonl", rejects)
        starts = range(0, len(prompts), section.block_size)
        blocks = [with_samples(prompts[i : i + section.block_size], section.samples) for i in starts]
        manifest = Manifest(
            teacher=model_fingerprint(resolve_model(config.teacher.path)),
            student=model_fingerprint(resolve_model(config.student.path)),
            tokenizer=tokenizer_fingerprint(tokenizer),
            template=template_fingerprint(config.prompt, tokenizer),
            prompt=config.prompt,
            seeds=(config.run.seed,),
            sampling=section.sampling,
            stop_ids={
                "teacher": stop_ids(resolve_model(config.teacher.path), tokenizer),
                "student": stop_ids(resolve_model(config.student.path), tokenizer),
            },
            samples=section.samples,
            num_prompts=len(prompts),
            rejects=count_rejects(rejects),
            blocks=tuple(map(len, blocks)),
            prompts=prompts_digest(prompts),
            pairs=ids_digest(prompt.id for block in blocks for prompt in block),
        )
        missing = open_rollouts(directory.path, manifest)
        seconds = 0.0
        if missing:
            seconds = _generate(config, directory.path, {i: blocks[i] for i in missing}, num_pairs=manifest.num_pairs)
            directory.pull()
        if missing or not (directory.path / TIMING).exists():
            write_timing(directory.path, manifest.num_blocks, seconds=seconds)
        grading = keep_grading(directory.path, manifest, tokenizer, config.evaluate.thinking)
        for side, figures in grading.items():
            say(side, figures)
        return directory.path


def _generate(config: Config, directory: Path, missing: Mapping[int, list[Prompt]], *, num_pairs: int) -> float:
    """Make the missing blocks, with progress; how long it took once there was a cluster."""
    from actors.cluster import ray_cluster
    from actors.generation import generate_rollouts
    from vcrd_ray.data.manifest import PartTotals

    totals = PartTotals()
    with ray_cluster(config), StageProgress("rollouts", num_pairs, "pairs") as progress:
        started = time.perf_counter()
        progress.advance(num_pairs - sum(map(len, missing.values())))

        def on_block(made: PartTotals) -> None:
            nonlocal totals
            totals += made
            speeds = f"teacher {totals.teacher.tokens_per_s:.0f} and student {totals.student.tokens_per_s:.0f} tokens/s"
            progress.advance(made.pairs, f"{speeds} a replica")

        generate_rollouts(config, directory, list(missing.items()), on_block=on_block)
        return time.perf_counter() - started


def main(argv: list[str]) -> int:
    config, flags = load_config(
        "rollouts", "Responses of teacher and student to each prompt, made once.", argv, any_key=False
    )
    if flags.dry_run:
        check(config, fetch=False)
        return print_dry_run(config, SECTIONS, actors=False)
    print(run(config))
    return 0


if __name__ == "__main__":
    run_main(main)
