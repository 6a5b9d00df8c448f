"""Supervised fine-tuning of the student on gold solutions.

    python -m jobs.sft --config FILE [--section.key value ...] [--dry-run]

Leaves RUN/sft/model, the checkpoint that rollouts and distillation start from (--student.path RUN/sft/model).
"""

from __future__ import annotations

from jobs.cli import load_config, run_main
from jobs.common import check_models, check_prompts, model_location, print_dry_run
from jobs.progress import follow_training
from vcrd_ray.config import Config
from vcrd_ray.runs.directory import RunDirectory
from vcrd_ray.runs.tracking import check_trackers

SECTIONS = ("run", "cluster", "world", "prompt", "student", "sft")


def check(config: Config, *, fetch: bool = True) -> None:
    """Everything that can be refused before a model is loaded."""
    check_trackers(config.run.trackers)
    check_prompts(config.sft.prompts, fetch=fetch)
    check_models(config, teacher=False, judge=False, fetch=fetch)


def run(config: Config) -> str:
    """Fine-tune (or finish an interrupted run); where the exported model is."""
    from actors.cluster import ray_cluster
    from actors.ranks.group import is_finished, train
    from actors.ranks.run_state import RankJob
    from vcrd_ray.training.trainer import DONE_FILE

    with RunDirectory(config.run.dir, "sft", config, sections=SECTIONS) as directory:
        if not is_finished(directory.path):
            check(config)
            with ray_cluster(config), follow_training("sft", config) as told:
                train(
                    RankJob(
                        config=config,
                        run_dir=directory.path,
                        rollouts=None,
                        teacher=None,
                        judge=None,
                        rollout=None,
                        **told,
                    )
                )
            directory.pull_results(DONE_FILE)
        return model_location(config, "sft")


def main(argv: list[str]) -> int:
    config, flags = load_config("sft", "Supervised fine-tuning of the student on gold solutions.", argv, any_key=False)
    if flags.dry_run:
        check(config, fetch=False)
        return print_dry_run(config, SECTIONS, actors=False)
    print(run(config))
    return 0


if __name__ == "__main__":
    run_main(main)
