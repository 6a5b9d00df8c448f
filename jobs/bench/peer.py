"""The same distillation here and in TRL: tokens a second and peak memory of an update.

Forward KL on the teacher's responses, global token mean, LoRA; the same initial weights, pairs of each update, micro-batch
size and threads. In process, teacher and student take turns on the same threads; through Ray each has a process and
threads of its own. TRL generates nothing: its on-policy trainer is handed the teacher's responses. Contenders take turns,
each in processes of its own. That all of them carry out the same updates is seen in how little their losses differ.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jobs.bench.peer_setting import CONTENDERS, PEERS, WARM_UP, make_config, read_options, updates_of


def run(argv: list[str]) -> dict[str, Any]:
    """Tokens a second (median and quartiles over updates, first ones left out), memory, and how far the losses differ."""
    options = read_options(argv, description=__doc__)

    from jobs import rollouts

    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as folder:
        made = rollouts.run(make_config(options, Path(folder)))
        num_tokens = [sum(len(p.prompt_ids) + len(p.teacher_ids) for p in u) for u in updates_of(options, made)]
        for repeat in range(options.repeats):
            for name, found in measured.items():
                found.append(_measure(argv, name, made, Path(folder) / f"{name}-{repeat}"))
    figures: dict[str, Any] = {"updates": options.updates, "repeats": options.repeats, "threads": options.threads}
    speed: dict[str, float] = {}
    for name, found in measured.items():
        rates = [n / s for m in found for n, s in list(zip(num_tokens, m["seconds"], strict=True))[WARM_UP:]]
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


def _measure(argv: list[str], contender: str, rollouts: Path, folder: Path) -> dict[str, Any]:
    arguments = [*argv, "--contender", contender, "--rollouts", str(rollouts), "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": str(read_options(argv).threads)}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench.peer_contenders", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{contender} failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures
