"""A distillation whose actors are killed at random all the time: the result, what it cost, and memory over time.

Every few seconds one process of the run, a teacher, a judge or a student rank, is killed (SIGKILL). The student must come
out as that of an undisturbed run, bit for bit. Resident memory of every role's processes and the use of the object store
are sampled all along; --plot writes them as a page.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.bench.chaos_record import ROLES, growth, largest, recorded, write_plot


def run(argv: list[str]) -> dict[str, Any]:
    """Kills by role, recovery times, memory growth, and whether the result equals that of an undisturbed run."""
    options = _options(argv)

    from actors.cluster import ray_cluster
    from jobs import distill, rollouts
    from vcrd_ray.config import Config
    from vcrd_ray.runs.files import read_jsonl

    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {
                "run": {"dir": folder},
                "judge": {"type": "value_head", "replicas": 2},
                "teacher": {"replicas": 2},
                "student": {"max_failures": 10},
                "rollouts": {"prompts": {"type": "tiny", "seed": 2, "count": 256}, "sampling": {"max_new_tokens": 64}},
                "distill": {
                    "num_updates": options.updates,
                    "batch_size": 8,
                    "micro_batch_size": 4,
                    "checkpoint_every": 5,
                    "optim": {"lr": 1e-3},
                },
            }
        )
        with ray_cluster(config):
            rollouts.run(config)
            with recorded(options, kills=False) as undisturbed:
                calm = distill.run(config, name="distill-calm")
            with recorded(options, kills=True) as record:
                chaos = distill.run(config, name="distill-chaos")
        weights = [d / "adapter" / "adapter_model.safetensors" for d in (calm, chaos)]
        equal = weights[0].read_bytes() == weights[1].read_bytes()
        losses = [[row["loss"] for row in read_jsonl(d / "metrics.jsonl")] for d in (calm, chaos)]
    if options.plot:
        write_plot(record, options.plot)
    roles = (*ROLES.values(), "driver")
    return {
        "updates": options.updates,
        "minutes": round(record.seconds / 60, 1),
        "calm_minutes": round(undisturbed.seconds / 60, 1),
        "kills": dict(Counter(role for _, role in record.kills)),
        "bitwise_equal": equal and losses[0] == losses[1],
        # Of processes that live through a whole run; killed ones are young.
        "growth_mib_an_hour": {role: growth(undisturbed, role) for role in roles},
        "largest_mib": {role: [largest(seen, role) for seen in (undisturbed, record)] for role in roles},
        "object_store_mib": {
            "median": round(statistics.median(mib for _, mib in record.store), 1),
            "largest": round(max(mib for _, mib in record.store), 1),
        },
    }


def _options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench chaos", description=__doc__)
    parser.add_argument("--updates", type=int, default=600, help="updates of the run, which say how long it takes")
    parser.add_argument("--least-s", type=float, default=20.0, help="shortest time between two kills")
    parser.add_argument("--most-s", type=float, default=60.0, help="longest time between two kills")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed when")
    parser.add_argument("--plot", type=Path, help="page with memory over time")
    parser.add_argument("--record", type=Path, help="JSON with every sample")
    return parser.parse_args(argv)
