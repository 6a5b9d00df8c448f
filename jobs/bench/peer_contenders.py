"""The contenders of `jobs.bench peer`, each in processes of its own: seconds and loss of each update, peaks of memory.

python -m jobs.bench.peer_contenders [options of jobs.bench peer] --contender NAME --rollouts DIR --folder DIR
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from jobs.bench.memory import RayPeaks, peaks_beyond, resident_gib
from jobs.bench.peer_setting import make_config, make_student, read_options, rollout_pairs, updates_of
from jobs.bench.peer_trl import Peer, trl_trainer

if TYPE_CHECKING:
    from vcrd_ray.config import Config
    from vcrd_ray.types import RolloutPair


def _child(options: argparse.Namespace) -> None:
    """One contender: print the seconds and the loss of each update, and peaks of memory in GiB."""
    config = make_config(options, options.folder)
    if options.contender == "ray":
        figures = _through_ray(config)
    else:
        import torch

        torch.set_num_threads(options.threads)
        if options.contender == "in_process":
            figures = _in_process(config, rollout_pairs(config, options.rollouts))
        else:
            figures = _in_trl(options.contender, config, [p for u in updates_of(options, options.rollouts) for p in u])
    print(json.dumps(figures))


def _in_process(config: Config, pairs: list[RolloutPair]) -> dict[str, Any]:
    from vcrd_ray.engines.loading import load_engine
    from vcrd_ray.training.in_process import distil

    student, teacher = make_student(config), load_engine(config.teacher, config.teacher.path, use="annotate")
    before = resident_gib("VmRSS")
    reports = distil(config, pairs, student=student, teacher=teacher).reports
    return {
        "seconds": [report.metrics["time/update_s"] for report in reports],
        "losses": [report.metrics["loss"] for report in reports],
        "memory": peaks_beyond(before),
    }


def _through_ray(config: Config) -> dict[str, Any]:
    from actors.cluster import ray_cluster
    from jobs import distill
    from vcrd_ray.runs.files import read_jsonl

    with ray_cluster(config), RayPeaks() as peaks:
        rows = read_jsonl(distill.run(config) / "metrics.jsonl")
    return {
        "seconds": [row["time/update_s"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "memory": peaks.gib(),
    }


def _in_trl(peer: Peer, config: Config, pairs: list[RolloutPair]) -> dict[str, Any]:
    """`pairs` are those of all updates, one after the other."""
    import torch
    from transformers import TrainerCallback

    from vcrd_ray.models.checkpoint_files import load_causal_lm, resolve_model

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Seconds of each update, the fetching of its data included, the logging of the one before not."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self._started)

        def on_log(self, *_: Any, **__: Any) -> None:
            self._started = time.perf_counter()

    section, optim, student, clock = config.distill, config.distill.optim, make_student(config), Clock()
    num_updates = section.num_updates or 0
    trainer = trl_trainer(
        peer,
        model=student.model,
        teacher=load_causal_lm(resolve_model(config.teacher.path), dtype="float32", device=torch.device("cpu")),
        tokenizer=student.tokenizer,
        pairs=pairs,
        folder=config.run.dir,
        callbacks=[clock],
        max_steps=num_updates,
        per_device_train_batch_size=section.micro_batch_size,
        gradient_accumulation_steps=section.batch_size // section.micro_batch_size,
        learning_rate=optim.lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.betas[0],
        adam_beta2=optim.betas[1],
        max_grad_norm=optim.max_grad_norm,
        lr_scheduler_type="cosine",
        warmup_steps=round(optim.warmup_ratio * num_updates),
    )
    before = resident_gib("VmRSS")
    trainer.train()
    return {
        "seconds": clock.seconds,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "memory": peaks_beyond(before),
    }


if __name__ == "__main__":
    _child(read_options(sys.argv[1:]))
