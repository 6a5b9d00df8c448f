"""What all contenders of `jobs.bench peer` are given: options, config, rollout pairs in the order of the updates."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench.peer_trl import Peer

if TYPE_CHECKING:
    from vcrd_ray.config import Config
    from vcrd_ray.types import RolloutPair

PEERS: tuple[Peer, ...] = ("trl_gkd", "trl_distillation")
CONTENDERS = ("in_process", "ray", *PEERS)
WARM_UP = 3


def read_options(argv: list[str], *, description: str | None = None) -> argparse.Namespace:
    """Of the command line, those of a contender's own process included."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench peer", description=description)
    parser.add_argument("--updates", type=int, default=30, help=f"updates of each run, the first {WARM_UP} not counted")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender, taking turns")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--student", default="tiny:student-base")
    parser.add_argument("--teacher", default="tiny:teacher")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--rollouts", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.updates < WARM_UP + 2:
        parser.error(f"--updates must be at least {WARM_UP + 2}: the first {WARM_UP} are not counted")
    return options


def make_config(options: argparse.Namespace, folder: Path) -> Config:
    """The same distillation for all contenders."""
    from vcrd_ray.config import Config

    return Config.model_validate(
        {
            "run": {"dir": folder},
            "student": {"path": options.student, "threads": options.threads},
            "teacher": {"path": options.teacher, "threads": options.threads},
            "rollouts": {
                "prompts": {"type": "tiny", "seed": 2, "count": options.prompts},
                "sampling": {"max_new_tokens": options.max_new_tokens},
            },
            "distill": {
                "rollouts": options.rollouts,
                "num_updates": options.updates,
                "batch_size": options.batch_size,
                "micro_batch_size": options.micro_batch_size,
                "checkpoint_every": options.updates,
                "optim": {"lr": 1e-3},
                "lora": {"dropout": 0.0},
                "objective": {
                    "on_teacher": {"type": "forward_kl"},
                    "lambda_student": 0.0,
                    "weighting": {"type": "uniform"},
                    "reduction": "global_token_mean",  # the only one that TRL has
                },
            },
        }
    )


def rollout_pairs(config: Config, rollouts: Path) -> list[RolloutPair]:
    """All pairs, in the order of the files."""
    from vcrd_ray.data.manifest import read_manifest
    from vcrd_ray.data.rollouts import read_pairs
    from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model

    manifest = read_manifest(rollouts)
    pairs, _ = read_pairs(
        rollouts,
        teacher=manifest.teacher,
        tokenizer=manifest.tokenizer,
        vocab_size=len(load_tokenizer(resolve_model(config.student.path))),
        max_length=config.distill.max_length,
    )
    return pairs


def updates_of(options: argparse.Namespace, rollouts: Path) -> list[list[RolloutPair]]:
    """The pairs of each update, in this project's order."""
    from vcrd_ray.training.data_order import DataOrder

    config = make_config(options, Path())
    pairs = rollout_pairs(config, rollouts)
    order = DataOrder(
        num_examples=len(pairs),
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        ranks=1,
        seed=config.run.seed,
    )
    return [[pairs[i] for i in order.order_of(update)] for update in range(options.updates)]


def make_student(config: Config) -> Any:
    """The student that each contender begins with, adapters drawn from the run's seed."""
    import torch

    from vcrd_ray.models.student import Student

    return Student(
        config.student, lora=config.distill.lora, train_head=False, device=torch.device("cpu"), seed=config.run.seed
    )
