"""A run that a real Prometheus scrapes, and every query of the shipped dashboard asked of it.

    python -m tests.manual.dashboard --prometheus /usr/bin/prometheus [--page dashboard.html] [--updates 150]

Says how many series each panel shows, and draws the panels from what Prometheus answers. Ends with 1 where a panel stays empty
that this machine could fill.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import requests
import torch
import yaml
from plotly.subplots import make_subplots

from tests.actors.conftest import make_config
from tests.actors.nodes import ROOT, Watched
from tests.conftest import write_rollouts
from tests.jobs.heads import free_ports

_BOARD = ROOT / "deploy/grafana/vcrd_ray.json"
_COLUMNS = 4
_OF_OTHER_RUNS = {"Schedules of the objective"}
"""Panels of objectives that VCRD is not."""


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, each with its queries; all runs and roles are chosen."""
    found = [panel for panel in json.loads(_BOARD.read_text())["panels"] if panel["type"] != "row"]
    for panel in found:
        panel["queries"] = [t["expr"].replace("$run", ".*").replace("$role", ".*") for t in panel["targets"]]
    return found


def start_prometheus(binary: str, folder: Path, discovery: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Prometheus as deploy/ configures it, but for where Ray writes its addresses; its process and URL."""
    config = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())
    config["scrape_configs"][0]["file_sd_configs"][0] = {"files": [str(discovery)], "refresh_interval": "5s"}
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    (port,) = free_ports(1)
    command = [binary, f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=subprocess.STDOUT
        )
    return process, f"http://127.0.0.1:{port}"


def ask(url: str, query: str, *, since: float) -> list[dict[str, Any]]:
    """Series that a query has had since then."""
    asked = {"query": query, "start": since, "end": time.time(), "step": 5}
    answer = requests.get(f"{url}/api/v1/query_range", params=asked, timeout=30)
    answer.raise_for_status()
    return list(answer.json()["data"]["result"])


def draw(answers: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """A page with a small picture of each panel."""
    rows = math.ceil(len(answers) / _COLUMNS)
    figure = make_subplots(rows, _COLUMNS, subplot_titles=list(answers), vertical_spacing=0.35 / rows)
    for index, series in enumerate(answers.values()):
        for one in series:
            times = [datetime.fromtimestamp(at, UTC) for at, _ in one["values"]]
            labels = {name: value for name, value in one["metric"].items() if name in ("__name__", "State", "role")}
            line = go.Scatter(x=times, y=[float(value) for _, value in one["values"]], name=" ".join(labels.values()))
            figure.add_trace(line, row=index // _COLUMNS + 1, col=index % _COLUMNS + 1)
    figure.update_annotations(font_size=11)
    figure.update_layout(height=rows * 150, width=1500, showlegend=False, margin={"t": 30, "b": 20, "l": 40, "r": 20})
    figure.write_html(file)


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prometheus", default="prometheus", help="its program")
    parser.add_argument("--page", type=Path, help="where to draw the panels (HTML)")
    parser.add_argument("--updates", type=int, default=150)
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="prom", dir="/tmp"))
    watch = {"every": 10, "prompts": {"type": "tiny", "seed": 5, "count": 8}, "sampling": {"max_new_tokens": 24}}
    config = make_config(
        folder / "run",
        write_rollouts(folder / "rollouts", 24),
        distill={"num_updates": flags.updates, "epochs": flags.updates, "checkpoint_every": 50, "watch": watch},
        rollouts={"refresh": {"every": 5, "ahead": 1}, "sampling": {"max_new_tokens": 24}},
        judge={"type": "value_head"},
        cluster={"dashboard": True},
    )
    since = time.time()
    prometheus, url = start_prometheus(flags.prometheus, folder, folder / "ray" / "prom_metrics_service_discovery.json")
    try:
        run = Watched(config, os.environ | {"RAY_TMPDIR": str(folder), "PYTHONPATH": str(ROOT)})
        while run.running():
            time.sleep(1)
        assert run.end() == 0, run.output[-4000:]
        answers = {
            panel["title"]: [series for query in panel["queries"] for series in ask(url, query, since=since)]
            for panel in panels()
        }
    finally:
        prometheus.terminate()
        prometheus.wait(30)
    for title, series in answers.items():
        print(f"{len(series):3} series  {title}")
    if flags.page:
        draw(answers, flags.page)
    empty = {title for title, series in answers.items() if not series} - _OF_OTHER_RUNS
    if not torch.cuda.is_available():
        empty = {title for title in empty if not title.startswith("GPU")}
    print(f"empty that should not be: {sorted(empty) or 'none'}")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
