"""Validity-calibrated distillation: teacher, student and judge as Ray actors on rollouts made before.

    python -m jobs.distill --config FILE [--method NAME] [--section.key value ...] [--dry-run]

Leaves RUN/distill/model (plain Hugging Face), RUN/distill/adapter (PEFT, with LoRA), metrics, decisions, checkpoints,
and RUN/report.html. Run again after a kill, it goes on from the last complete checkpoint.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from jobs.cli import load_config, run_main
from jobs.common import check_golds, check_models, check_prompts, print_dry_run, push_report
from jobs.progress import follow_training
from vcrd_ray.config import Config
from vcrd_ray.config.base import THINKING
from vcrd_ray.config.methods import METHODS, with_method
from vcrd_ray.runs.directory import RunDirectory
from vcrd_ray.runs.storage import Store, is_remote, local_path
from vcrd_ray.runs.tracking import check_trackers

SECTIONS = ("run", "cluster", "world", "student", "teacher", "judge", "prompt", "rollouts", "distill")


def rollouts_location(config: Config) -> str:
    """Where the rollouts of this run are: a directory, or a folder in storage."""
    given = config.distill.rollouts
    if given is None and config.run.storage is not None:
        return Store(config.run.storage).within("rollouts").uri
    return given if given and is_remote(given) else str(Path(given or config.run.dir / "rollouts").resolve())


def rollouts_directory(config: Config) -> Path:
    """The rollouts of this run on this machine."""
    return local_path(rollouts_location(config))


def check(config: Config, *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    check_trackers(config.run.trackers)
    check_models(config, teacher=config.distill.objective.needs_teacher, judge=True, fetch=fetch)
    if config.distill.watch.every:
        prompts = config.distill.watch.prompts
        check_prompts(prompts, fetch=fetch)
        check_golds(prompts, config.world, THINKING, source="distill.watch.prompts", fetch=fetch)


def run(config: Config, *, name: str = "distill") -> Path:
    """Distil (or finish an interrupted run) in RUN/NAME; that directory."""
    from actors.cluster import ray_cluster
    from actors.placement_wait import explain_waiting
    from actors.pools.launch import judge_pool, rollout_pool, teacher_pool
    from actors.pools.startup import pools_beside
    from actors.ranks.group import is_finished, train, warn_of_quarantined
    from actors.ranks.run_state import RankJob
    from actors.ranks.timeline import write_timeline
    from vcrd_ray.training import assemble
    from vcrd_ray.training.trainer import DONE_FILE

    with RunDirectory(config.run.dir, name, config, sections=SECTIONS) as directory:
        if is_finished(directory.path):
            return directory.path
        check(config)
        assemble.check_rollouts(config, rollouts_directory(config))
        with ray_cluster(config), follow_training(name, config) as told:
            teacher, judge, rollout = teacher_pool(config), judge_pool(config), rollout_pool(config)
            pools = [pool for pool in (teacher, judge, rollout) if pool is not None]
            notes, timeout_s = told["notes"], config.cluster.start_timeout_s
            # All are asked for at once: nodes for them come, and models load, side by side.
            with (
                pools_beside(pools, judge, notes, timeout_s=timeout_s),
                explain_waiting(config, pools_too=lambda: notes.read("pools") is not None),
            ):
                job = RankJob(
                    config=config,
                    run_dir=directory.path,
                    rollouts=rollouts_location(config),
                    teacher=teacher,
                    judge=judge,
                    rollout=rollout,
                    **told,
                )
                try:
                    train(job)
                finally:
                    if config.cluster.timeline:
                        write_timeline(directory.path)
        # Not before: with storage the metrics may be on another node.
        directory.pull_results(DONE_FILE)
        warn_of_quarantined(directory.path)
        return directory.path


def main(argv: list[str]) -> int:
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--method", choices=list(METHODS), help="objective by name (default: that of the config)")
    config, flags = load_config(
        "distill", "Validity-calibrated distillation on rollout pairs.", argv, extra=extra, any_key=False
    )
    if flags.method:
        config = with_method(config, flags.method)
    if flags.dry_run:
        check(config, fetch=False)
        return print_dry_run(config, SECTIONS, actors=True)
    directory = run(config)
    from vcrd_ray.report.page import write_report

    print(directory)
    print(write_report(config.run.dir))
    push_report(config)
    return 0


if __name__ == "__main__":
    run_main(main)
