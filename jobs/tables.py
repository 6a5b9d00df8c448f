"""Methods side by side: on the tiny world with paired seeds, or the rows of the paper's tables by name.

    python -m jobs.tables tiny [--seeds N] [--methods M ...] [--settings S ...] [--workers W] [--section.key value ...]
    python -m jobs.tables paper [--table T]

`tiny` trains every (setting, seed, method) in processes of this machine, without Ray, and prints a table a setting: mean over
seeds with its 95% interval, paired difference to VCRD with its p-value, seconds an update. All methods of a seed share one
fine-tuned student, one set of rollouts and one data order. Each result is a file under RUN/tables, so that the same command
goes on where it stopped. `paper` prints each row's figure as published and the command that runs it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from jobs.cli import load_config, run_main
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError
from vcrd_ray.methods import METHODS, with_method
from vcrd_ray.runs import write_json

if TYPE_CHECKING:
    from vcrd_ray.types import RolloutPair

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "tables.yaml"
REFERENCE = "vcrd"
FINE_TUNED = "sft"
"""The student before distillation: a row of every table."""
DEFAULT_METHODS = (
    *(
        "kd",
        "seqkd",
        "gkd",
        "distillm",
        "distillm2",
        "abkd",
        "uniform",
        "lv_skl",
        "lv_srkl",
        "amp_off",
        "student_score",
    ),
    *("difference", "difference_shifted", "vcrd", "vcrd_prob"),
)

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "weak_teacher": {"teacher": {"path": "tiny:teacher-weak"}},
    "hot_teacher": {"rollouts": {"sampling": {"temperature": 1.2, "top_p": 1.0}}},
    "weak_hot_teacher": {
        "teacher": {"path": "tiny:teacher-weak"},
        "rollouts": {"sampling": {"temperature": 1.2, "top_p": 1.0}},
    },
    "oracle": {"judge": {"type": "oracle"}},
    "soft_oracle": {"judge": {"type": "oracle", "confidence": 0.7}},
    "weak_teacher_oracle": {"teacher": {"path": "tiny:teacher-weak"}, "judge": {"type": "oracle"}},
    "one_way": {"world": {"num_ways": 1}},
    "small_adapter": {"distill": {"lora": {"r": 2, "alpha": 16, "dropout": 0.0}}},
    "full_fine_tuning": {"distill": {"lora": None, "optim": {"lr": 1.0e-3}}},
}
"""Knobs of the tiny world: who teaches and how hot, who judges, how many ways a step may be said, what the student can
change. The uniform weights are the judge that says nothing."""


def run_cell(config: Config, methods: Sequence[str], *, seed: int, folder: Path) -> None:
    """All methods of one (setting, seed), one JSON file each in `folder`; finished ones are not repeated."""
    import torch

    torch.set_num_threads(1)
    missing = [m for m in (FINE_TUNED, *methods) if not (folder / f"{m}.json").exists()]
    if not missing:
        return
    config = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed, "dir": folder})})
    base = _fine_tune(config, folder)
    config = config.model_copy(update={"student": config.student.model_copy(update={"path": str(base)})})
    if FINE_TUNED in missing:
        write_json(folder / f"{FINE_TUNED}.json", {"accuracy": _accuracy(config, base)})
        missing.remove(FINE_TUNED)
    pairs = _rollouts(config) if missing else []
    for method in missing:
        write_json(folder / f"{method}.json", _distil(with_method(config, method), pairs, folder / f"model-{method}"))


def _fine_tune(config: Config, folder: Path) -> Path:
    import torch

    from vcrd_ray.backends import TorchBackend
    from vcrd_ray.data.problems import make_examples, read_problems
    from vcrd_ray.sft import FineTuner
    from vcrd_ray.student import Student

    done = folder / "sft" / "model"
    if done.exists():
        return done
    student = Student(config.student, lora=None, train_head=True, device=torch.device("cpu"), seed=config.run.seed)
    problems, _ = read_problems(config.sft.prompts, config.world)
    examples, _ = make_examples(problems, student.tokenizer, max_length=config.sft.max_length)
    backend = TorchBackend(student, config.sft.optim, num_updates=config.sft.num_updates or 1)
    tuner = FineTuner(
        backend=backend,
        examples=examples,
        section=config.sft,
        seed=config.run.seed,
        vocab_size=len(student.tokenizer),
    )
    tuner.run(first_update=0, stop=tuner.num_updates, on_update=lambda report: None)
    backend.export(folder / "sft")
    return done


def _rollouts(config: Config) -> list[RolloutPair]:
    import torch

    from vcrd_ray.data.problems import read_problems, tokenize_prompts
    from vcrd_ray.engines.hf import HFEngine
    from vcrd_ray.models import load_tokenizer, resolve_model
    from vcrd_ray.types import RolloutPair

    section = config.rollouts
    problems, _ = read_problems(section.prompts, config.world)
    tokenizer = load_tokenizer(resolve_model(config.student.path))
    prompts, _ = tokenize_prompts(problems, tokenizer, max_length=section.max_prompt_length)
    responses = []
    for path, seed in ((config.teacher.path, 2 * config.run.seed), (config.student.path, 2 * config.run.seed + 1)):
        engine = HFEngine(path, dtype="float32", device=torch.device("cpu"))
        size = section.batch_size
        batches = (prompts[i : i + size] for i in range(0, len(prompts), size))
        responses.append([r for batch in batches for r in engine.generate(batch, section.sampling, seed=seed)])
    return [
        RolloutPair(id=p.id, question=p.question, prompt_ids=p.ids, teacher_ids=t.ids, student_ids=s.ids)
        for p, t, s in zip(prompts, *responses, strict=True)
    ]


def _distil(config: Config, pairs: Sequence[RolloutPair], folder: Path) -> dict[str, Any]:
    import torch

    from vcrd_ray.backends import TorchBackend
    from vcrd_ray.distill import Distiller, JudgeBounds, teacher_request
    from vcrd_ray.engines.hf import HFEngine
    from vcrd_ray.judges.loading import load_judge
    from vcrd_ray.models import load_head, resolve_model
    from vcrd_ray.signals import LocalSignals
    from vcrd_ray.student import Student
    from vcrd_ray.types import UpdateReport

    section, seed, cpu = config.distill, config.run.seed, torch.device("cpu")
    student = Student(config.student, lora=section.lora, train_head=section.train_head, device=cpu, seed=seed)
    backend = TorchBackend(student, section.optim, num_updates=section.num_updates or 1)
    judge = load_judge(config.judge, policy=config.student.path) if section.objective.needs_judge else None
    reports: list[UpdateReport] = []
    distiller = Distiller(
        backend=backend,
        teacher_head=load_head(resolve_model(config.teacher.path), dtype="float32"),
        signals=LocalSignals(
            teacher=HFEngine(config.teacher.path, dtype="float32", device=cpu),
            judge=judge,
            request=teacher_request(section, config.teacher, seed=seed),
        ),
        pairs=pairs,
        section=section,
        seed=seed,
        vocab_size=len(student.tokenizer),
        judge_bounds=JudgeBounds(max_invalid_share=config.judge.max_invalid_share, self_check_tolerance=None),
    )
    started = time.perf_counter()
    distiller.run(first_update=0, stop=distiller.num_updates, on_update=reports.append)
    seconds = (time.perf_counter() - started) / distiller.num_updates
    backend.export(folder)
    judged = [r.metrics for r in reports if r.metrics["judge/judged_rows"]]
    figures: dict[str, Any] = {
        "accuracy": _accuracy(config, folder / "model"),
        "update_s": seconds,
        "loss": reports[-1].metrics["loss"],
    }
    for name in ("weights/mean_judged", "weights/share_above_one_judged", "proposals/agreement"):
        figures[name] = sum(m[name] for m in judged) / len(judged) if judged else None
    return figures


def _accuracy(config: Config, model: Path) -> float:
    import torch

    from vcrd_ray.data.problems import read_problems, tokenize_prompts
    from vcrd_ray.engines.hf import HFEngine
    from vcrd_ray.models import load_tokenizer
    from vcrd_ray.tasks.answers import is_correct

    section, tokenizer = config.evaluate, load_tokenizer(model)
    problems, _ = read_problems(section.prompts, config.world)
    prompts, _ = tokenize_prompts(problems, tokenizer, max_length=2**31)
    engine = HFEngine(str(model), dtype="float32", device=torch.device("cpu"))
    correct = 0
    for start in range(0, len(prompts), section.batch_size):
        batch = prompts[start : start + section.batch_size]
        for prompt, rollout in zip(batch, engine.generate(batch, section.sampling, seed=0), strict=True):
            correct += is_correct(tokenizer.decode(rollout.ids, skip_special_tokens=True), prompt.answer)
    return correct / len(prompts)


def with_setting(config: Config, name: str) -> Config:
    """The config with one setting's knobs turned."""
    return Config.model_validate(_merged(config.model_dump(round_trip=True), SETTINGS[name]))


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        # Another type of a section has other keys: it replaces the section.
        nested = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("type", old.get("type")) == old.get("type")
        )
        merged[key] = _merged(old, value) if nested and isinstance(old, dict) else value
    return merged


def run_tiny(config: Config, *, settings: Sequence[str], methods: Sequence[str], seeds: int, workers: int) -> Path:
    """Train all cells in `workers` processes; the directory of the results."""
    root = config.run.dir / "tables"
    cells = [(setting, seed) for seed in range(seeds) for setting in settings]
    work: list[Callable[[], None]] = [
        partial(run_cell, with_setting(config, setting), methods, seed=seed, folder=root / setting / f"seed-{seed}")
        for setting, seed in cells
    ]
    # Fresh processes: torch's threads do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(cell): name for cell, name in zip(work, cells, strict=True)}
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            setting, seed = waiting[future]
            print(f"{done}/{len(cells)} cells: {setting}, seed {seed}", file=sys.stderr, flush=True)
    return root


def tiny_table(root: Path, setting: str, methods: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """The rows of one setting's table, best first."""
    from dataclasses import asdict

    from vcrd_ray.analysis.comparison import compare

    values: dict[str, dict[int, float]] = {}
    seconds: dict[str, list[float]] = {}
    for method in (FINE_TUNED, *methods):
        for seed in range(seeds):
            figures = json.loads((root / setting / f"seed-{seed}" / f"{method}.json").read_text())
            values.setdefault(method, {})[seed] = figures["accuracy"]
            seconds.setdefault(method, []).append(figures.get("update_s", float("nan")))
    reference = REFERENCE if REFERENCE in methods else methods[0]
    rows = [
        {**asdict(row), "update_s": sorted(seconds[row.method])[len(seconds[row.method]) // 2]}
        for row in compare(values, reference=reference)
    ]
    return sorted(rows, key=lambda row: -row["mean"])


def show_tiny(setting: str, rows: list[dict[str, Any]]) -> None:
    """One setting's table."""
    table = Table(title=f"tiny world, {setting}: greedy pass@1 over {rows[0]['num_seeds']} seeds")
    for heading in ("method", "mean", "95% interval", "to VCRD", "95% interval", "p", "s/update"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            f"{100 * row['mean']:.1f}",
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['difference_low']:+.1f} to {100 * row['difference_high']:+.1f}",
            f"{row['p_value']:.3f}",
            f"{row['update_s']:.2f}",
        )
    Console(width=110).print(table)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N-1 (default: 5)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(DEFAULT_METHODS))
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=["default"])
    parser.add_argument("--workers", type=int, default=1, help="processes side by side (default: 1)")
    if not argv or argv[0] not in ("tiny", "paper"):
        raise ConfigError("say which tables: python -m jobs.tables tiny, or python -m jobs.tables paper")
    if argv[0] == "paper":
        from jobs.paper import main as paper

        return paper(argv[1:])
    rest = argv[1:] if "--config" in argv else ["--config", str(DEFAULT_CONFIG), *argv[1:]]
    config, flags = load_config("tables tiny", "Methods side by side on the tiny world.", rest, extra=parser)
    for setting in flags.settings:
        for method in flags.methods:
            with_method(with_setting(config, setting), method)
    if flags.dry_run:
        print(f"{len(flags.settings) * flags.seeds} cells of {len(flags.methods)} methods")
        return 0
    root = run_tiny(config, settings=flags.settings, methods=flags.methods, seeds=flags.seeds, workers=flags.workers)
    tables = {s: tiny_table(root, s, flags.methods, flags.seeds) for s in flags.settings}
    for setting, rows in tables.items():
        show_tiny(setting, rows)
    write_json(root / "tables.json", tables)
    print(root / "tables.json")
    return 0


if __name__ == "__main__":
    run_main(main)
