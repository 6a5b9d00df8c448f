"""The metrics of a run as Ray metrics: on Ray's dashboard, in Prometheus, in the shipped Grafana dashboard."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ray.util.metrics import Gauge

_TAGS = ("role", "replica", "run")


def gauge_name(series: str) -> str:
    """What a series is called as a Ray metric; Prometheus sees it with `ray_` before it."""
    return f"vcrd_{series.replace('/', '_')}"


class Gauges:
    """One gauge a series, made when the series is first seen."""

    def __init__(self, *, role: str, replica: int, run: str) -> None:
        self._tags = {"role": role, "replica": str(replica), "run": run}
        self._gauges: dict[str, Gauge] = {}

    def set(self, values: Mapping[str, float]) -> None:
        """Show these values from now on. What is no number, such as a share of nothing, is left as it was."""
        for series, value in values.items():
            if not math.isfinite(value):
                continue
            if series not in self._gauges:
                gauge = Gauge(gauge_name(series), description=f"{series} of the last update", tag_keys=_TAGS)
                gauge.set_default_tags(self._tags)
                self._gauges[series] = gauge
            self._gauges[series].set(value)
