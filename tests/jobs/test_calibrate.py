"""jobs.calibrate on a small run of the tiny world, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import calibrate
from tests.conftest import make_pairs, write_rollouts
from vcrd_ray.config.models import ValueHeadJudgeSection
from vcrd_ray.data.rollouts import SCHEMA, part_path
from vcrd_ray.errors import ConfigError, DataError, ModelError
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.report.page import write_report
from vcrd_ray.types import JudgeRequest

STUDENT = "tiny:student-base"
CLASSES = ["step_end", "step_start", "mid_step"]


def command(run: Path, *more: str) -> list[str]:
    return ["--run.dir", str(run), *more]


def change_rows(run: Path, change: Any) -> None:
    """Every row of the run's one block, changed in place."""
    path = part_path(run / "rollouts", 0)
    rows = [row | change(row) for row in pq.read_table(path).to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)


def saved(run: Path, name: str = "calibration") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "calibration" / f"{name}.json").read_text())
    return content


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """24 right responses of the teacher and 24 of the student that end in another digit."""
    write_rollouts(tmp_path / "rollouts", 24)
    digits = load_tokenizer(resolve_model(STUDENT)).convert_tokens_to_ids(list("0123456789"))

    def wrong_answer(row: dict[str, Any]) -> dict[str, Any]:
        *kept, digit, end = row["teacher_ids"]
        return {"student_ids": [*kept, digits[(digits.index(digit) + 3) % 10], end]}

    change_rows(tmp_path, wrong_answer)
    return tmp_path


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    question, steps = "Ann has 12 pens, gets 7. How many pens?", ["12+7=19", "12+7=18"]
    rows = [{"id": f"b-{i}", "problem": question, "steps": steps, "label": 1} for i in range(3)]
    rows += [{**rows[0], "steps": steps[:1], "label": -1}, {**rows[0], "steps": [*steps, "9" * 600]}]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "bench.jsonl"


def test_figures_maps_and_agreement_are_printed_and_saved(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "knows.yaml").write_text("judge: {type: oracle}\n")
    assert calibrate.main(command(run, "--other", str(run / "knows.yaml"))) == 0
    output = capsys.readouterr().out
    for shown in ("step end", "step start", "mid step", "tells right from wrong", "knows, mid step"):
        assert shown in output, shown
    found = saved(run)
    assert found["num_right"] == 24
    assert list(found["classes"]) == CLASSES == list(found["calibration"]["maps"])
    assert found["num_prompts"] == 24 and found["num_fitted_prompts"] == 12 and found["num_responses"] == 48
    # Every token but the end of sequence is read once.
    text_tokens = sum(2 * (len(p.teacher_ids) - 1) for p in make_pairs(24))
    assert sum(row["reads"] for row in found["classes"].values()) == text_tokens
    (other,) = found["others"]
    assert other["family"] == "oracle" and other["classes"]["step_end"]["same_side"] > 0.8
    assert found["calibration"]["judge"] == load_judge(ValueHeadJudgeSection(), policy=STUDENT).profile.fingerprint


def test_the_file_calibrates_the_judge_of_a_config(run: Path) -> None:
    calibrate.main(command(run, "--method", "temperature"))
    plain = load_judge(ValueHeadJudgeSection(), policy=STUDENT)
    section = ValueHeadJudgeSection(calibration=run / "calibration" / "calibration.json")
    mapped = load_judge(section, policy=STUDENT)
    assert mapped.profile.fingerprint.startswith(f"{plain.profile.fingerprint}+calibration-")
    pair = make_pairs(1)[0]
    asked = JudgeRequest(questions=(pair.question,), responses=(pair.student_ids,), proposals=(pair.student_ids,))
    before, after = plain.score(asked), mapped.score(asked)
    assert np.array_equal(after.trunk_logit, after.branch_logit)
    own = saved(run)["calibration"]["maps"]["step_start"]
    assert after.trunk_logit[0] == pytest.approx(own["slope"] * before.trunk_logit[0] + own["offset"], rel=1e-5)


def test_a_calibrated_config_measures_the_judge_without_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate.main(command(run))
    first = saved(run)
    capsys.readouterr()
    own = str(run / "calibration" / "calibration.json")
    calibrate.main(command(run, "--judge.type", "value_head", "--judge.calibration", own))
    assert saved(run)["classes"] == first["classes"] and "without it" in capsys.readouterr().err


def test_json_is_all_that_is_printed(run: Path, bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate.main(command(run, "--json", "--max-rollouts", "21", "--processbench", str(bench)))
    shown = json.loads(capsys.readouterr().out)
    assert shown["calibration"] == saved(run) and shown["calibration"]["num_responses"] == 21
    (figures,) = shown["processbench"]
    assert figures == saved(run, "processbench")["files"][0]
    assert figures["skipped"] == 1 and "positions" in figures["skip_reason"]
    assert figures["error_items"] == 3 and figures["correct_items"] == 1


def test_processbench_needs_no_rollouts(tmp_path: Path, bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate.main(command(tmp_path, "--processbench", str(bench), "--max-items", "2"))
    captured = capsys.readouterr()
    assert "ProcessBench alone" in captured.err and "ProcessBench, first step" in captured.out
    assert not (tmp_path / "calibration" / "calibration.json").exists()
    assert saved(tmp_path, "processbench")["files"][0]["error_items"] == 2


def test_a_dry_run_leaves_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(command(run, "--dry-run")) == 0
    assert "path: tiny:prm" in capsys.readouterr().out and not (run / "calibration").exists()


def test_no_rollouts_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run jobs\.rollouts first"):
        calibrate.main(command(tmp_path))


@pytest.mark.parametrize("answer", [None, "who knows"])
def test_nothing_to_check_is_an_error(run: Path, answer: str | None) -> None:
    change_rows(run, lambda row: {"answer": answer})
    with pytest.raises(DataError, match=r"no prompt has a gold answer.*answer_key"):
        calibrate.main(command(run))


def test_responses_without_an_answer_are_counted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_rows(run, lambda row: {"answer": None if row["prompt_id"].endswith(("1", "2")) else row["answer"]})
    calibrate.main(command(run))
    found = saved(run)
    assert found["num_unchecked"] == 2 * 6 and found["num_responses"] == 48 - 12
    assert "12 responses have no gold answer" in capsys.readouterr().out


def test_all_right_is_said_and_makes_no_map(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_rows(run, lambda row: {"student_ids": row["teacher_ids"]})
    assert calibrate.main(command(run)) == 0
    assert "all answers are right: AUC is undefined" in capsys.readouterr().out
    assert saved(run)["calibration"]["maps"] == {}
    with pytest.raises(ModelError, match="all right or all wrong"):
        load_judge(
            ValueHeadJudgeSection(calibration=run / "calibration" / "calibration.json"),
            policy=STUDENT,
        )
    assert "could not be tested" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--max-rollouts", "0"), "--max-rollouts 0"),
        (("--threshold", "1"), "--threshold 1"),
        (("--max-items", "3"), "without --processbench"),
        (("--other", "nothing.yaml"), "no such file"),
    ],
)
def test_flags_that_cannot_be_are_refused(run: Path, flags: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        calibrate.main(command(run, *flags))


def test_another_judge_needs_its_section(run: Path) -> None:
    (run / "empty.yaml").write_text("run: {seed: 1}\n")
    with pytest.raises(ConfigError, match="no judge: section"):
        calibrate.main(command(run, "--other", str(run / "empty.yaml")))


def test_the_report_shows_the_section_only_where_there_is_one(run: Path, bench: Path) -> None:
    title = "Can the judge be trusted?"
    assert title not in write_report(run).read_text()
    (run / "knows.yaml").write_text("judge: {type: oracle}\n")
    calibrate.main(command(run, "--other", str(run / "knows.yaml"), "--processbench", str(bench)))
    text = write_report(run).read_text().split("</head>")[1]
    found = saved(run)["classes"]
    for shown in (title, "tells right from wrong", "share that ends right", "knows (oracle)"):
        assert shown in text, shown
    for row in found.values():
        assert f">{row['auc']:.3f}<" in text and f">{row['held_out_after']['ece']:.3f}<" in text
    assert "ProcessBench: does the first step" in text and ">bench<" in text
    (run / "calibration" / "calibration.json").write_text("{}")
    with pytest.raises(DataError, match=r"not written by this version of jobs\.calibrate"):
        write_report(run)
