"""A distillation through Ray with the judge overlapped, with the judge serial, and with uniform weights.

The same rollouts, seeds and updates; runs take turns. Figures are medians over updates, the first ones left out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

_WARM_UP = 3


def run(argv: list[str]) -> dict[str, Any]:
    """Seconds an update of each variant, ratios, exposed wait, and whether overlapped and serial end bitwise equal."""
    options = _options(argv)

    from actors.cluster import ray_cluster
    from jobs import distill, rollouts
    from vcrd_ray.config import Config
    from vcrd_ray.config.methods import with_method
    from vcrd_ray.runs.files import read_jsonl

    base = {
        "student": {"path": options.student, "threads": options.threads},
        "teacher": {"path": options.teacher, "threads": options.threads},
        "judge": {"type": "value_head", "path": options.judge, "threads": options.threads},
        "rollouts": {"prompts": {"type": "tiny", "seed": 2, "count": 256}, "sampling": {"max_new_tokens": 64}},
        "distill": {
            "num_updates": options.updates,
            "batch_size": options.batch_size,
            "micro_batch_size": options.micro_batch_size,
            "checkpoint_every": options.updates,
            "optim": {"lr": 1e-3},
        },
    }
    seconds: dict[str, list[float]] = {"overlapped": [], "serial": [], "uniform": []}
    waits: dict[str, list[float]] = {"overlapped": [], "serial": []}
    weights: dict[str, Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate({**base, "run": {"dir": folder}})
        with ray_cluster(config):
            made = rollouts.run(config)
            for repeat in range(options.repeats):
                for variant in seconds:
                    section = config.distill.model_copy(update={"overlap": variant != "serial", "rollouts": str(made)})
                    chosen = config.model_copy(update={"distill": section})
                    chosen = with_method(chosen, "uniform" if variant == "uniform" else "vcrd")
                    directory = distill.run(chosen, name=f"distill-{variant}-{repeat}")
                    rows = read_jsonl(directory / "metrics.jsonl")[_WARM_UP:]
                    seconds[variant] += [row["time/update_s"] for row in rows]
                    if variant in waits:
                        waits[variant] += [row["wait/teacher_s"] + row["wait/judge_s"] for row in rows]
                    weights[variant] = directory / "adapter" / "adapter_model.safetensors"
        equal = weights["overlapped"].read_bytes() == weights["serial"].read_bytes()
    medians = {variant: statistics.median(values) for variant, values in seconds.items()}
    return {
        "updates": options.updates,
        "repeats": options.repeats,
        "overlapped_s": round(medians["overlapped"], 4),
        "serial_s": round(medians["serial"], 4),
        "uniform_s": round(medians["uniform"], 4),
        "overlapped_over_uniform": round(medians["overlapped"] / medians["uniform"], 4),
        "serial_over_overlapped": round(medians["serial"] / medians["overlapped"], 4),
        "overlapped_wait_share": round(sum(waits["overlapped"]) / sum(seconds["overlapped"]), 4),
        "serial_wait_share": round(sum(waits["serial"]) / sum(seconds["serial"]), 4),
        "bitwise_equal": equal,
    }


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench overlap", description=__doc__)
    parser.add_argument("--updates", type=int, default=30, help="updates of each run, the first 3 not counted")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each variant, taking turns")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--micro-batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each role")
    parser.add_argument("--student", default="tiny:student-base")
    parser.add_argument("--teacher", default="tiny:teacher")
    parser.add_argument("--judge", default="tiny:prm")
    return parser.parse_args(argv)
