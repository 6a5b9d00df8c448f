"""The comparison on the tiny world, small: a table, a file for each result, and nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.jobs.conftest import run

pytestmark = [pytest.mark.slow, pytest.mark.full]
SMALL = [
    *("--sft.num_updates", "2", "--rollouts.prompts.count", "24", "--distill.num_updates", "2"),
    *("--distill.batch_size", "8", "--distill.micro_batch_size", "8", "--evaluate.prompts.count", "20"),
]


def test_paired_seeds_make_a_table_and_finished_results_are_kept(tmp_path: Path) -> None:
    command = ["jobs.tables", "tiny", "--seeds", "2", "--run.dir", str(tmp_path), *SMALL]
    output = run(*command, "--methods", "vcrd", "--settings", "oracle")
    for shown in ("tiny world, oracle", "vcrd", "sft", "tables.json"):
        assert shown in output
    tables = json.loads((tmp_path / "tables" / "tables.json").read_text())
    assert {row["method"] for row in tables["oracle"]} == {"vcrd", "sft"}
    for row in tables["oracle"]:
        assert row["num_seeds"] == 2 and 0 <= row["mean"] <= 1
    results = sorted((tmp_path / "tables").glob("*/seed-*/*.json"))
    assert len(results) == 2 * 2
    before = {p: p.stat().st_mtime_ns for p in results}
    run(*command, "--methods", "vcrd", "kd", "--settings", "oracle", "--workers", "2")
    assert {p: p.stat().st_mtime_ns for p in results} == before
    assert (tmp_path / "tables" / "oracle" / "seed-1" / "kd.json").exists()
