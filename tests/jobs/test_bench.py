"""Each benchmark prints one line of JSON with its figures."""

from __future__ import annotations

import json

import pytest

from tests.jobs.conftest import run

pytestmark = [pytest.mark.slow, pytest.mark.full]


def bench(*argv: str) -> dict[str, float]:
    lines = [line for line in run("jobs.bench", *argv, "--json").splitlines() if line.startswith("{")]
    assert len(lines) == 1
    figures: dict[str, float] = json.loads(lines[0])
    return figures


def test_loss_is_exact_and_takes_less_memory() -> None:
    figures = bench(
        "loss",
        "--rows",
        "512",
        "--vocab",
        "20000",
        "--student-hidden",
        "64",
        "--teacher-hidden",
        "64",
        "--repeats",
        "1",
    )
    for name in ("skl", "srkl"):
        assert figures[f"{name}_max_rel_grad_difference"] < 1e-4
        assert figures[f"{name}_fused_peak_gib"] < 0.6 * figures[f"{name}_dense_peak_gib"]


def test_judge_is_exact() -> None:
    figures = bench(
        "judge",
        *("--response-length", "48", "--prompt-length", "16", "--repeats", "1", "--agreement", "0", "1"),
        *("--attention", "dense", "flex", "two_stream"),
    )
    assert len(figures["cases"]) == 6
    for case in figures["cases"]:
        assert case["num_tokens"] == 64 + case["num_branches"] and case["packed_s"] > 0
        if case["agreement"] == 0:
            assert case["max_abs_logit_difference"] < 1e-4 and case["num_branches"] >= 47


def test_overlapped_and_serial_runs_on_ray_end_bitwise_equal() -> None:
    figures = bench("overlap", "--updates", "5", "--repeats", "1", "--batch-size", "4", "--micro-batch-size", "2")
    assert figures["bitwise_equal"] is True and figures["overlapped_s"] > 0
