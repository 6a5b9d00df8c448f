"""Methods side by side on the tiny world: its settings, and the tables of their results. Trains nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vcrd_ray.config import Config
from vcrd_ray.report.comparison import compare
from vcrd_ray.report.trial import FINE_TUNED

REFERENCE = "vcrd"
DEFAULT_METHODS = (
    *(
        "kd",
        "seqkd",
        "gkd",
        "distillm",
        "distillm2",
        "abkd",
        "uniform",
        "lv_skl",
        "lv_srkl",
        "amp_off",
        "student_score",
    ),
    *("difference", "difference_shifted", "vcrd", "vcrd_prob"),
)

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "weak_teacher": {"teacher": {"path": "tiny:teacher-weak"}},
    "hot_teacher": {"rollouts": {"sampling": {"temperature": 1.2, "top_p": 1.0}}},
    "weak_hot_teacher": {
        "teacher": {"path": "tiny:teacher-weak"},
        "rollouts": {"sampling": {"temperature": 1.2, "top_p": 1.0}},
    },
    "oracle": {"judge": {"type": "oracle"}},
    "soft_oracle": {"judge": {"type": "oracle", "confidence": 0.7}},
    "weak_teacher_oracle": {"teacher": {"path": "tiny:teacher-weak"}, "judge": {"type": "oracle"}},
    "one_way": {"world": {"num_ways": 1}},
    "small_adapter": {"distill": {"lora": {"r": 2, "alpha": 16, "dropout": 0.0}}},
    "full_fine_tuning": {"distill": {"lora": None, "optim": {"lr": 1.0e-3}}},
    "long": {"distill": {"num_updates": 300}},
    "refresh_epoch": {"rollouts": {"refresh": {"every": "epoch", "ahead": 1}}},
    "refresh_10": {"rollouts": {"refresh": {"every": 10, "ahead": 1}}},
    "refresh_1_ahead_4": {"rollouts": {"refresh": {"every": 1, "ahead": 4}}},
    "on_policy": {"rollouts": {"refresh": {"every": 1, "ahead": 0}}},
}
"""Knobs of the tiny world: who teaches and how hot, who judges, how many ways a step may be said, what the student can
change, how long it learns, how fresh its own responses are. The uniform weights are the judge that says nothing."""


def with_setting(config: Config, name: str) -> Config:
    """The config with one setting's knobs turned."""
    return Config.model_validate(_merged(config.model_dump(round_trip=True), SETTINGS[name]))


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        # Another type of a section has other keys: it replaces the section.
        nested = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("type", old.get("type")) == old.get("type")
        )
        merged[key] = _merged(old, value) if nested and isinstance(old, dict) else value
    return merged


def tiny_table(root: Path, setting: str, methods: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """The rows of one setting's table, best first."""
    values: dict[str, dict[int, float]] = {}
    seconds: dict[str, list[float]] = {}
    for method in (FINE_TUNED, *methods):
        for seed in range(seeds):
            figures = json.loads((root / setting / f"seed-{seed}" / f"{method}.json").read_text())
            values.setdefault(method, {})[seed] = figures["accuracy"]
            seconds.setdefault(method, []).append(figures.get("update_s", float("nan")))
    reference = REFERENCE if REFERENCE in methods else methods[0]
    rows = [
        {**asdict(row), "update_s": sorted(seconds[row.method])[len(seconds[row.method]) // 2]}
        for row in compare(values, reference=reference)
    ]
    return sorted(rows, key=lambda row: -row["mean"])


def show_tiny(setting: str, rows: list[dict[str, Any]]) -> None:
    """One setting's table."""
    table = Table(title=f"tiny world, {setting}: greedy pass@1 over {rows[0]['num_seeds']} seeds")
    for heading in ("method", "mean", "95% interval", "to VCRD", "95% interval", "p", "s/update"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for row in rows:
        table.add_row(
            row["method"],
            f"{100 * row['mean']:.1f}",
            f"{100 * row['low']:.1f} to {100 * row['high']:.1f}",
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['difference_low']:+.1f} to {100 * row['difference_high']:+.1f}",
            f"{row['p_value']:.3f}",
            f"{row['update_s']:.2f}",
        )
    Console(width=110).print(table)
