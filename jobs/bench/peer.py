"""The same distillation here and in TRL: tokens a second and peak memory of an update.

Forward KL on the teacher's responses, global token mean, LoRA; the same initial weights, pairs of each update, micro-batch
size and threads. In process, teacher and student take turns on the same threads; through Ray each has a process and
threads of its own. TRL generates nothing: its on-policy trainer is handed the teacher's responses. Contenders take turns,
each in processes of its own. That all of them carry out the same updates is seen in how little their losses differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from jobs.bench.memory import resident_gib
from jobs.bench.peer_trl import Peer, trl_trainer

if TYPE_CHECKING:
    from vcrd_ray.config import Config
    from vcrd_ray.types import RolloutPair

PEERS: tuple[Peer, ...] = ("trl_gkd", "trl_distillation")
CONTENDERS = ("in_process", "ray", *PEERS)
_WARM_UP = 3
_POLL_S = 1.0  # looking through all processes takes time from those that are measured


def run(argv: list[str]) -> dict[str, Any]:
    """Tokens a second (median and quartiles over updates, first ones left out), memory, and how far the losses differ."""
    options = _options(argv)

    from jobs import rollouts

    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        made = rollouts.run(_config(options, Path(folder)))
        num_tokens = [sum(len(p.prompt_ids) + len(p.teacher_ids) for p in u) for u in _updates(options, made)]
        for repeat in range(options.repeats):
            for name, found in measured.items():
                found.append(_measure(argv, name, made, Path(folder) / f"{name}-{repeat}"))
    figures: dict[str, Any] = {"updates": options.updates, "repeats": options.repeats, "threads": options.threads}
    speed: dict[str, float] = {}
    for name, found in measured.items():
        rates = [n / s for m in found for n, s in list(zip(num_tokens, m["seconds"], strict=True))[_WARM_UP:]]
        quartiles = statistics.quantiles(rates, n=4)
        speed[name] = quartiles[1]
        for label, value in zip(("q1", "median", "q3"), quartiles, strict=True):
            figures[f"{name}_tokens_per_s_{label}"] = round(value, 1)
        for label in found[0]["memory"]:
            figures[f"{name}_{label}"] = round(statistics.median(m["memory"][label] for m in found), 4)
    for peer in PEERS:
        for name in ("in_process", "ray"):
            figures[f"{name}_over_{peer}_speed"] = round(speed[name] / speed[peer], 4)
    ours = measured["in_process"][0]["losses"]
    for name in ("ray", *PEERS):
        apart = [abs(a / b - 1) for a, b in zip(measured[name][0]["losses"], ours, strict=True)]
        figures |= {f"{name}_first_loss_rel_difference": apart[0], f"{name}_max_loss_rel_difference": max(apart)}
    return figures


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench peer", description=__doc__)
    parser.add_argument(
        "--updates", type=int, default=30, help=f"updates of each run, the first {_WARM_UP} not counted"
    )
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
    if options.updates < _WARM_UP + 2:
        parser.error(f"--updates must be at least {_WARM_UP + 2}: the first {_WARM_UP} are not counted")
    return options


def _config(options: argparse.Namespace, folder: Path) -> Config:
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


def _measure(argv: list[str], contender: str, rollouts: Path, folder: Path) -> dict[str, Any]:
    arguments = [*argv, "--contender", contender, "--rollouts", str(rollouts), "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(_options(argv).threads)}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench.peer", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{contender} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _pairs(config: Config, rollouts: Path) -> list[RolloutPair]:
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


def _updates(options: argparse.Namespace, rollouts: Path) -> list[list[RolloutPair]]:
    """The pairs of each update, in this project's order."""
    from vcrd_ray.training.data_order import DataOrder

    config = _config(options, Path())
    pairs = _pairs(config, rollouts)
    order = DataOrder(
        num_examples=len(pairs),
        batch_size=options.batch_size,
        micro_batch_size=options.micro_batch_size,
        ranks=1,
        seed=config.run.seed,
    )
    return [[pairs[i] for i in order.order_of(update)] for update in range(options.updates)]


def _child(options: argparse.Namespace) -> None:
    """One contender: print the seconds and the loss of each update, and peaks of memory in GiB."""
    config = _config(options, options.folder)
    if options.contender == "ray":
        figures = _through_ray(config)
    else:
        import torch

        torch.set_num_threads(options.threads)
        if options.contender == "in_process":
            figures = _in_process(config, _pairs(config, options.rollouts))
        else:
            figures = _in_trl(options.contender, config, [p for u in _updates(options, options.rollouts) for p in u])
    print(json.dumps(figures))


def _in_process(config: Config, pairs: list[RolloutPair]) -> dict[str, Any]:
    from vcrd_ray.engines.loading import load_engine
    from vcrd_ray.training.in_process import distil

    student, teacher = _student(config), load_engine(config.teacher, config.teacher.path, use="annotate")
    before = resident_gib("VmRSS")
    reports = distil(config, pairs, student=student, teacher=teacher).reports
    peak = resident_gib("VmHWM")
    return {
        "seconds": [report.metrics["time/update_s"] for report in reports],
        "losses": [report.metrics["loss"] for report in reports],
        "memory": {"peak_gib": peak, "peak_beyond_models_gib": peak - before},
    }


def _student(config: Config) -> Any:
    """The student that each contender begins with, adapters drawn from the run's seed."""
    import torch

    from vcrd_ray.models.student import Student

    return Student(
        config.student, lora=config.distill.lora, train_head=False, device=torch.device("cpu"), seed=config.run.seed
    )


def _through_ray(config: Config) -> dict[str, Any]:
    from actors.cluster import ray_cluster
    from jobs import distill
    from vcrd_ray.runs.files import read_jsonl

    with ray_cluster(config), _RayPeaks() as peaks:
        rows = read_jsonl(distill.run(config) / "metrics.jsonl")
    return {
        "seconds": [row["time/update_s"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "memory": peaks.gib(),
    }


class _RayPeaks:
    """Peak memory of the student's rank and of the teacher's actor, read from outside while they live."""

    _ROLES: ClassVar = {"ray::RayTrainWorker": "rank", "ray::EngineActor": "teacher"}

    def __init__(self) -> None:
        self._gib: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def gib(self) -> dict[str, float]:
        """By role."""
        return {f"{role}_peak_gib": peak for role, peak in sorted(self._gib.items())}

    def _poll(self) -> None:
        import psutil

        while not self._stop.wait(_POLL_S):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error, OSError, RuntimeError):  # it has just ended
                    # A Ray worker's title is its class and the method that it runs.
                    title = next(iter(process.cmdline()), "")
                    role = self._ROLES.get(title.split(".")[0])
                    if role is not None:
                        peak = resident_gib("VmHWM", process.pid)
                        self._gib[role] = max(peak, self._gib.get(role, 0.0))


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

    section, optim, student, clock = config.distill, config.distill.optim, _student(config), Clock()
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
    peak = resident_gib("VmHWM")
    return {
        "seconds": clock.seconds,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "memory": {"peak_gib": peak, "peak_beyond_models_gib": peak - before},
    }


if __name__ == "__main__":
    _child(_options(sys.argv[1:]))
