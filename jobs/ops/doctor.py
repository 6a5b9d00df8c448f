"""Whether a cluster is fit for a distillation, looked at before anything is paid for. Loads no model, changes nothing.

Every node is asked by a task that runs on it. Ends with 1 where something is wrong. What only the models themselves can show
(packed against separate judging) the job checks when it starts.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jobs.cli import load_config
from vcrd_ray.config import Config
from vcrd_ray.planning.health import Finding

_COLORS = {"ok": "green", "warning": "yellow", "error": "bold red"}


def run(config: Config, *, cluster: Path | None = None, timeout_s: float = 120.0) -> list[Finding]:
    """All findings about the cluster that `config` names, or about one that is started here as the jobs do.

    Args:
        cluster: a cluster file, whose nodes the autoscaler may still bring.
        timeout_s: longest wait for the nodes' answers to one question.
    """
    from actors.cluster import ray_cluster
    from jobs.ops.examination import Examination, nodes_of_cluster

    with ray_cluster(config):
        nodes, found = nodes_of_cluster()
        examination = Examination(config, nodes, timeout_s=timeout_s)
        found += examination.placement(cluster)
        found += examination.reports()
        found += examination.sizes()
        found += examination.storage()
        found += examination.models()
        found += examination.clocks()
    return found


def show(found: Sequence[Finding], console: Console) -> None:
    """A line for each finding, and its cure below."""
    for finding in found:
        mark = f"[{_COLORS[finding.severity]}]{finding.severity:<8}[/]"
        console.print(f"{mark}{finding.check}: {finding.what}", soft_wrap=True)
        if finding.cure:
            console.print(f"        -> {finding.cure}", soft_wrap=True)


def main(argv: list[str]) -> int:
    """See the module."""
    extra = argparse.ArgumentParser(add_help=False)
    extra.add_argument("--cluster-file", type=Path, metavar="FILE", help="nodes that the autoscaler may bring")
    extra.add_argument("--timeout-s", type=float, default=120.0, help="longest wait for the answers to one question")
    extra.add_argument("--json", action="store_true", help="a JSON list instead of lines")
    config, flags = load_config(
        "doctor", "Whether a cluster is fit for a distillation.", argv, extra=extra, any_key=False
    )
    found = run(config, cluster=flags.cluster_file, timeout_s=flags.timeout_s)
    if flags.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found]))
    else:
        show(found, Console(highlight=False))
    return int(any(finding.severity == "error" for finding in found))
