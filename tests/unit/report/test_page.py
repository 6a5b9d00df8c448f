"""The report of a small run directory."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import make_pairs, write_rollouts
from vcrd_ray.data.accuracy import accuracy
from vcrd_ray.models.checkpoint_files import resolve_model
from vcrd_ray.report.page import visible, write_report
from vcrd_ray.training.telemetry import Telemetry
from vcrd_ray.types import Decision


def decision(pair: str, position: int, weight: float, sampled: bool = True) -> Decision:
    return Decision(
        update=0, pair=pair, side="teacher", position=position, length=20, teacher_token=5, student_token=6,
        teacher_score=0.2, student_score=0.2 * weight, weight=weight, divergence=0.1, sampled=sampled,
    )  # fmt: skip


def write_run(root: Path) -> Path:
    write_rollouts(root / "rollouts", 6)
    pairs = make_pairs(6)
    run = root / "distill-vcrd"
    run.mkdir(parents=True)
    metrics = Telemetry.metrics(np.ones_like(Telemetry().to_vector()), world_size=1)
    known = {k: 0.5 for k in metrics} | {"grad_norm": 1.0, "lr": 1e-3, "time/update_s": 2.0, "judge/judged_rows": 10.0}
    rows = [{"update": u, "time": 0.0, **known, "rows": 100.0} for u in range(4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    decisions = [decision(p.id, i, 0.1 + 2 * i) for i, p in enumerate(pairs)]
    (run / "decisions.jsonl").write_text("".join(json.dumps(asdict(d)) + "\n" for d in decisions))
    (run / "config.yaml").write_text("distill: {note: <script>alert(1)</script>}\n")
    (run / "versions.json").write_text('{"git_commit": "0123456789abcdef", "torch": "2"}')
    (run / "training.json").write_text('{"self_check_difference": 1.5e-06}')
    (run / "model").symlink_to(resolve_model("tiny:student-base"))
    for label, correct in (("teacher", 98), ("sft", 28), ("vcrd", 52)):
        folder = root / f"evaluate-{label}"
        folder.mkdir()
        result = accuracy(correct=correct, total=100, confidence=0.95).model_dump() | {"label": label}
        (folder / "result.json").write_text(json.dumps(result))
    (root / "summary.json").write_text(json.dumps({"wall_s": {"sft": 12.5}}))
    return root


def body(page: str) -> str:
    return page.split("</head>")[1]


def test_the_report_shows_what_the_run_found(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path)).read_text()
    text = body(page)
    for shown in ("98.0%", "28.0%", "52.0%", "+24.0", "1.5e-06", "12.5", "0123456789ab", "Most amplified", "10.1"):
        assert shown in text, shown
    question = make_pairs(6)[5].question
    assert question in text
    # Both conventions of the share at or above one: 50% of judged rows, 50% of all rows, from 40 and 400 rows.
    assert text.count("50.0%") >= 3 and ">40<" in text and ">400<" in text


def test_the_page_loads_nothing_from_the_network(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path)).read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    assert page.count("* plotly.js v") == 1 and "Plotly.newPlot" in page


def test_text_is_escaped(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path)).read_text()
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page


def test_missing_parts_are_left_out(tmp_path: Path) -> None:
    text = body(write_report(tmp_path).read_text())
    assert "<h2>" not in text and "<h1>" in text
    write_run(tmp_path)
    for name in ("decisions.jsonl", "model"):
        (tmp_path / "distill-vcrd" / name).unlink()
    text = body(write_report(tmp_path).read_text())
    assert "Most amplified" not in text and "How much more valid" not in text and "Before and after" in text


@pytest.mark.parametrize(("text", "shown"), [("\n", "⏎"), (" pens", "␣pens"), ("  ", "␣␣"), ("7", "7")])
def test_white_space_is_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown
