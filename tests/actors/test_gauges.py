"""A run's metrics where Prometheus reads them."""

from __future__ import annotations

import time
import urllib.request

import pytest
import ray

from actors.ranks.gauges import Gauges

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]


class Rank:
    def __init__(self) -> None:
        self._gauges = Gauges(role="student", replica=0, run="demo/distill")

    def report(self, loss: float) -> None:
        self._gauges.set({"loss": loss, "rollouts/staleness": float("nan"), "judge/saturation": 0.25})


def scrape() -> list[str]:
    (port,) = {node["MetricsExportPort"] for node in ray.nodes() if node["Alive"]}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        return [line for line in response.read().decode().splitlines() if line.startswith("ray_vcrd_")]


OURS = 'run="demo/distill"'
"""Other runs of this Ray leave series too."""


def test_series_are_scraped_with_their_tags_and_what_is_no_number_is_not() -> None:
    rank = ray.remote(num_cpus=0)(Rank).remote()
    lines: list[str] = []
    until = time.monotonic() + 60
    while time.monotonic() < until and not any(line.startswith("ray_vcrd_loss{") and OURS in line for line in lines):
        ray.get(rank.report.remote(1.5))
        time.sleep(1)
        lines = scrape()
    ray.kill(rank)
    (loss,) = [line for line in lines if line.startswith("ray_vcrd_loss{") and OURS in line]
    assert loss.endswith(" 1.5")
    assert 'role="student"' in loss and 'replica="0"' in loss
    assert any(line.startswith("ray_vcrd_judge_saturation{") and OURS in line for line in lines)
    assert not any("staleness" in line and OURS in line for line in lines)
