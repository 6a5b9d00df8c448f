"""What all jobs share: checks before anything is loaded, the dry run, and where results are. No torch."""

from __future__ import annotations

import sys
from typing import Literal

import yaml

from vcrd_ray.config import Config
from vcrd_ray.config.base import Thinking
from vcrd_ray.config.data import Prompts
from vcrd_ray.config.models import ModelJudge
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.runs.storage import Store


def check_prompts(section: Prompts, *, fetch: bool = True) -> None:
    """Refuse data sets that are not there.

    Without `fetch` nothing is downloaded: data sets of the hub are named on standard error and not checked.

    Raises:
        DataError: no such file, folder, split or column.
    """
    from vcrd_ray.data.problems import check_problems

    remote = check_problems(section, fetch=fetch)
    if remote:
        print(f"not checked, because a dry run fetches nothing from the hub: {', '.join(remote)}", file=sys.stderr)


def check_golds(section: Prompts, world: WorldConfig, thinking: Thinking, *, source: str, fetch: bool = True) -> None:
    """Refuse problems whose gold answers cannot be graded. Without `fetch`, data sets of the hub are passed over.

    Raises:
        DataError: no gold is one that a response could meet.
        ConfigError: the golds need a library that is not installed.
    """
    from vcrd_ray.data.problems import check_problems, read_problems
    from vcrd_ray.grading.responses import ResponseGrader

    if not check_problems(section, fetch=fetch):
        problems, _ = read_problems(section, world)
        ResponseGrader(
            [problem.solution for problem in problems],
            thinking=thinking,
            source=source,
            cure=f"set {source}.answer_key",
        )


def check_models(
    config: Config,
    *,
    teacher: bool,
    judge: bool,
    fetch: bool,
    use: Literal["train", "generate", "score"] = "train",
) -> None:
    """Resolve the models that a job will load, check their files and compare their tokenizers; no weights are read.

    Without `fetch` nothing is downloaded: models of the hub are named on standard error and not compared.

    Args:
        config: names the models.
        teacher: the teacher is loaded.
        judge: the judge is loaded, where the objective needs one.
        fetch: copy here what is elsewhere.
        use: what for. What trains or scores makes logits of states and output embeddings itself, so there must not be
            more to them; teachers are asked through `teacher.engine`, but for scores.

    Raises:
        ModelError: a model is missing or damaged or cannot be used so, or its tokenizer does not fit the student's.
    """
    from vcrd_ray.judges.calibrated import read_calibration
    from vcrd_ray.judges.loading import check_judge
    from vcrd_ray.models.causal_lm import check_checkpoint, stored_head
    from vcrd_ray.models.checkpoint_files import load_tokenizer, must_be_fetched, resolve_model
    from vcrd_ray.models.vocabulary import check_same_vocabulary
    from vcrd_ray.planning.tokenizers import occurring_ids

    judge_path = config.judge.path if isinstance(config.judge, ModelJudge) else ""
    judge = judge and config.distill.objective.needs_judge
    paths = [config.student.path, *[config.teacher.path] * teacher, *[judge_path] * bool(judge and judge_path)]
    remote = [] if fetch else [path for path in dict.fromkeys(paths) if must_be_fetched(path)]
    if remote:
        print(f"not checked, because a dry run fetches nothing: {', '.join(remote)}", file=sys.stderr)
    if config.student.path in remote:
        return
    student = load_tokenizer(resolve_model(config.student.path))
    kind = {"plain_head": use != "generate", "by_transformers": use == "score" or config.teacher.engine == "hf"}
    check_checkpoint(resolve_model(config.student.path), trained=use == "train", **kind)
    if teacher and config.teacher.path not in remote:
        check_same_vocabulary(
            student,
            load_tokenizer(resolve_model(config.teacher.path)),
            role="teacher",
            occurring=occurring_ids(config, student),
        )
        check_checkpoint(resolve_model(config.teacher.path), **kind)
        if use == "train" and config.teacher.transport == "hidden":
            stored_head(resolve_model(config.teacher.path))
    if judge and judge_path and judge_path not in remote:
        check_judge(config.judge, policy=config.student.path)
    if judge and config.judge.calibration is not None:
        read_calibration(config.judge.calibration)


def check_evaluated(config: Config, *, fetch: bool = True) -> None:
    """Refuse a checkpoint to evaluate that cannot be loaded; no weights are read."""
    from vcrd_ray.models.causal_lm import check_checkpoint
    from vcrd_ray.models.checkpoint_files import load_tokenizer, must_be_fetched, resolve_model

    model = config.evaluate.model or config.student.path
    if fetch or not must_be_fetched(model):
        load_tokenizer(resolve_model(model))
        by_transformers = config.teacher.engine == "hf"
        check_checkpoint(resolve_model(model), plain_head=False, by_transformers=by_transformers)


def model_location(config: Config, job: str) -> str:
    """Where a training of this run leaves its model: a directory, or a folder in storage."""
    if config.run.storage is not None:
        return Store(config.run.storage).within(job).within("model").uri
    return str((config.run.dir / job / "model").resolve())


def push_report(config: Config) -> None:
    """Bring what stands at the top of the run directory to storage, where there is one."""
    if config.run.storage is not None:
        for file in sorted(config.run.dir.glob("*.*")):
            if file.is_file() and not file.name.startswith("."):
                Store(config.run.storage).push(file, file.name)


def print_dry_run(config: Config, sections: tuple[str, ...], *, actors: bool) -> int:
    """The resolved config as YAML, and what would be asked of the cluster, to standard output; 0."""
    resolved = {name: value for name, value in config.model_dump(mode="json").items() if name in sections}
    print(yaml.safe_dump(resolved, sort_keys=False).rstrip())
    if actors:
        from actors.placement import placement_table

        print("\nplacement:")
        for role, count, resources in placement_table(config):
            asked = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
            print(f"  {count} x {role}: {asked} each")
    return 0
