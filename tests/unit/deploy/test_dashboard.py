"""The dashboard and the scrape configuration: queries that parse, series that exist, panels that say what they show."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import promql_parser
import pytest
import ray
from ray._private import ray_constants

from tests.unit.deploy.files import DASHBOARD, DEPLOY, ROOT, load
from tests.unit.deploy.series import METRICS, RAY, REFRESH, STEP, TELEMETRY, WATCH
from vcrd_ray.training.telemetry import Telemetry

ROWS = ["Training", "Validity weights", "Judge", "Waiting", "Rollouts during training", "Ray and the nodes"]
BOARD: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


def selectors(query: str) -> list[tuple[str, dict[str, str]]]:
    """(metric, value of each matched label) of every selector in a query."""
    found: list[tuple[str, dict[str, str]]] = []

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            found.append((node.name or "", {matcher.name: matcher.value for matcher in node.matchers.matchers}))
        return True

    promql_parser.walk(promql_parser.parse(query), visit)
    return found


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[f"{i}-{title}" for i, (title, _) in enumerate(QUERIES)])
def test_every_query_parses_and_reads_known_series_of_the_chosen_runs(title: str, query: str) -> None:
    read = selectors(query)
    assert read
    for name, labels in read:
        assert name in METRICS
        assert (labels.get("run"), labels.get("role")) == (
            ("$run", "$role") if name.startswith("ray_vcrd_") else (None, None)
        )


def test_a_query_that_is_none_does_not_parse() -> None:
    with pytest.raises(ValueError):
        promql_parser.parse("sum by (instance (ray_node_cpu_count)")


def test_every_series_is_shown() -> None:
    assert {name for _, query in QUERIES for name, _ in selectors(query)} == METRICS


def test_rows_come_in_the_order_in_which_a_run_is_read() -> None:
    assert [panel["title"] for panel in BOARD["panels"] if panel["type"] == "row"] == ROWS


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_every_panel_says_what_it_shows_in_which_unit(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert len(panel["description"]) > 20 and defaults["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    edges = [step["value"] for step in defaults["thresholds"]["steps"]]
    assert edges[0] is None and edges[1:] == sorted(edges[1:])
    refs = [target["refId"] for target in panel["targets"]]
    assert len(refs) == len(set(refs))
    assert all(target["legendFormat"] for target in panel["targets"])


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    for one, other in combinations((panel["gridPos"] for panel in BOARD["panels"]), 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
        assert one["x"] + one["w"] <= 24


def test_run_and_role_are_chosen_from_what_is_measured() -> None:
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "run", "role"]
    for name in ("run", "role"):
        (metric,) = re.findall(r"label_values\((\w+)", variables[name]["definition"])
        assert metric in METRICS and variables[name]["multi"] and variables[name]["includeAll"]


def test_the_list_of_series_is_that_of_the_program() -> None:
    given = Telemetry.metrics(np.ones_like(Telemetry().to_vector()), world_size=1)
    assert set(given) - REFRESH == TELEMETRY
    sources = (
        "vcrd_ray/training/telemetry.py",
        "vcrd_ray/training/distiller.py",
        "vcrd_ray/training/objective_progress.py",
        "actors/ranks/log.py",
    )
    text = "".join((ROOT / source).read_text(encoding="utf-8") for source in sources)
    assert {name for name in REFRESH | STEP | WATCH if f'"{name}"' not in text} == set()


def test_ray_s_own_metrics_are_those_that_it_charts_itself() -> None:
    charts = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards/default_dashboard_panels.py"
    text = charts.read_text(encoding="utf-8")
    assert {name for name in RAY if f"ray_{name}{{" not in text} == set()


def test_prometheus_reads_the_file_that_ray_writes() -> None:
    (job,) = load(DEPLOY / "prometheus.yml")["scrape_configs"]
    (source,) = job["file_sd_configs"]
    assert source["files"] == [f"/tmp/ray/{ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}"]
