"""Measured and published numbers in one table, and what a report shows of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.unit.report.test_page import write_run
from vcrd_ray.config import Config
from vcrd_ray.data.accuracy import accuracy
from vcrd_ray.evaluation.answers import Graded
from vcrd_ray.evaluation.published import PublishedTable, published_for, read_published
from vcrd_ray.evaluation.results import Backend, BenchmarkFigures, summarize, write_results
from vcrd_ray.evaluation.scoreboard import read_scoreboard
from vcrd_ray.report.page import write_report

PAPER = Path(__file__).parents[3] / "jobs" / "configs" / "paper"
PAIR = {"teacher": "Qwen/Qwen2.5-Math-7B-Instruct", "student": "/models/Qwen2.5-Math-1.5B"}


def figures(name: str, correct: int, metrics: tuple[str, ...] = ("qwen", "math_verify")) -> BenchmarkFigures:
    graded = [
        Graded(
            id=str(i),
            sample=0,
            correct=dict.fromkeys(metrics, i < correct),
            verdict=dict.fromkeys(metrics, "x"),
            prediction=None,
        )
        for i in range(100)
    ]
    return summarize(name, graded, metrics=metrics, samples=1, ks=(1,), cut_off=0, no_room=0, confidence=0.95)


def evaluated(root: Path, label: str, *sets: BenchmarkFigures, backend: Backend = "own") -> Path:
    folder = root / f"evaluate-{label}"
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder, backend, sets, {one.name: {"seconds": 1.0} for one in sets}, {"results": {}})
    return folder


def test_printed_means_are_those_of_the_printed_columns_but_for_one() -> None:
    off = {
        (table.table, row.row): sum(row.scores) / len(row.scores)
        for table in read_published()
        for row in table.rows
        if row.scores and abs(sum(row.scores) / len(row.scores) - row.published) > 0.011
    }
    assert off == {("10", "r_S - r_T"): pytest.approx(58.07, abs=0.005)}


def test_every_pair_of_the_paper_is_the_one_of_its_config_and_has_one_main_table() -> None:
    for table in read_published():
        config = yaml.safe_load((PAPER / f"{table.config}.yaml").read_text(encoding="utf-8"))
        teacher, student = config["teacher"]["path"], config["student"]["path"]
        main = published_for(teacher=teacher, student=student)
        assert main is not None and main.config == table.config and main.rows[-1].row.startswith("VCRD")
    assert published_for(teacher="tiny:teacher", student="tiny:student-base") is None


def test_a_row_of_another_length_than_its_columns_is_refused() -> None:
    table = read_published()[0].model_dump()
    with pytest.raises(ValueError, match="2 scores to 8 columns"):
        PublishedTable.model_validate(table | {"teacher_scores": [1.0, 2.0]})


def test_columns_are_headlines_in_the_paper_s_order_and_the_plus_of_code(tmp_path: Path) -> None:
    one = evaluated(tmp_path, "a", figures("sums", 10), figures("math", 70), figures("gsm8k", 80))
    other = evaluated(tmp_path, "b", figures("humaneval", 60, ("base", "plus")))
    board = read_scoreboard({"a": one, "b": other}, published=published_for(**PAIR))
    assert board is not None and board.published is not None
    assert board.columns == (*board.published.columns, "sums", "humaneval", "humaneval+")
    cell = board.measured[0].cells["gsm8k"]
    wilson = accuracy(correct=80, total=100, confidence=0.95)
    assert (cell.value, cell.low, cell.high, cell.num_questions) == (0.8, wilson.low, wilson.high, 100)
    assert dict(board.published_lines)["VCRD"]["amc23"] == 60.0


def test_another_backend_s_task_never_stands_in_a_column_of_the_paper(tmp_path: Path) -> None:
    folder = evaluated(tmp_path, "h", figures("gsm8k", 80, ("exact_match,strict-match",)), backend="lm-eval")
    board = read_scoreboard({"h": folder}, published=published_for(**PAIR))
    assert board is not None and list(board.measured[0].cells) == ["gsm8k (exact_match,strict-match)"]
    assert board.measured[0].backend == "lm-eval"


def test_a_suite_evaluated_later_joins_the_earlier_one(tmp_path: Path) -> None:
    evaluated(tmp_path, "a", figures("math", 70))
    folder = evaluated(tmp_path, "a", figures("humaneval", 60, ("base", "plus")))
    evaluated(tmp_path, "a", figures("math", 71))
    content = json.loads((folder / "figures.json").read_text())
    assert {one["name"]: one["metrics"][0]["value"] for one in content["sets"]} == {"math": 0.71, "humaneval": 0.6}
    assert set(content["generation"]) == {"math", "humaneval"}


def body(root: Path) -> str:
    return write_report(root).read_text(encoding="utf-8").split("</head>")[1]


def test_the_report_marks_what_others_published(tmp_path: Path) -> None:
    evaluated(tmp_path, "teacher", figures("gsm8k", 83))
    assert "published by others" not in body(tmp_path), "which models these are is not known"
    sft = tmp_path / "sft"
    sft.mkdir()
    config = Config.model_validate({role: {"path": path} for role, path in PAIR.items()})
    (sft / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    text = body(tmp_path)
    assert text.index("83.0") < text.index("published by others: table 2") < text.index("DistiLLM-2") < len(text)
    assert "85.1" in text and "60.0" in text


def test_the_report_marks_the_best_watched_version(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert "Watched while training" not in body(tmp_path)
    rows = [{"update": u, **accuracy(correct=c, total=50, confidence=0.95).model_dump()} for u, c in ((4, 31), (2, 20))]
    # Graded once more after a resume; as good as the best, which is the earlier one.
    rows += [{"update": 6, **accuracy(correct=31, total=50, confidence=0.95).model_dump()}] * 2
    log = tmp_path / "distill-vcrd" / "watched.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = body(tmp_path)
    assert "Watched while training: vcrd" in text and "Best after update 4: 62.0%" in text
    watched = text[text.index("Watched while training") :]
    assert re.search(r'"x":\s*\[2,4,6\]', watched) and re.search(r'"size":\s*\[6,12,6\]', watched)
    assert '"arrayminus":' in watched
