"""jobs.select on small rollouts of the tiny world, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import select
from tests.conftest import make_pairs, write_rollouts
from tests.unit.selection.sampled import change_rows, two_samples
from vcrd_ray.data.manifest import read_manifest
from vcrd_ray.data.rollouts import read_pairs
from vcrd_ray.errors import ConfigError, DataError, RunDirectoryError
from vcrd_ray.types import RolloutPair


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """12 prompts, a wrong and a right response of the teacher to each."""
    two_samples(tmp_path)
    return tmp_path


def call(run: Path, *more: str) -> int:
    return select.main(["--run.dir", str(run), *more])


def summary(run: Path, score: str = "lalp") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / f"select-{score}" / "summary.json").read_text())
    return found


def pairs_of(directory: Path) -> list[RolloutPair]:
    """As training reads them."""
    manifest = read_manifest(directory)
    pairs, rejects = read_pairs(
        directory, teacher=manifest.teacher, tokenizer=manifest.tokenizer, vocab_size=1000, max_length=500
    )
    assert not rejects
    return pairs


@pytest.mark.parametrize("score", ["lalp", "aslec_drop", "naturalness", "rsr", "correct", "divergence"])
def test_every_score_leaves_one_response_a_prompt_that_training_can_read(run: Path, score: str) -> None:
    assert call(run, "--select.score", score) == 0
    kept = pairs_of(run / f"select-{score}")
    assert len(kept) == 12 and len({p.question for p in kept}) == 12
    result = summary(run, score)
    assert (result["prompts"], result["responses"], result["kept"]) == (12, 24, 12)
    if score == "correct":
        assert [p.teacher_ids.tolist() for p in kept] == [p.teacher_ids.tolist() for p in make_pairs(12)]
        assert result["share_correct_of_kept"] == 1.0


def test_the_best_scored_response_is_kept_and_the_manifest_says_of_what(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run) == 0
    output = capsys.readouterr().out
    assert "best teacher responses by lalp" in output and "--distill.rollouts" in output
    folder = run / "select-lalp"
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    for prompt in {row["prompt_id"] for row in rows}:
        (kept,) = (row for row in rows if row["prompt_id"] == prompt and row["kept"])
        assert kept["score"] == max(row["score"] for row in rows if row["prompt_id"] == prompt)
    # A student that has read solutions finds most wrong digits unlikely.
    assert np.mean([row["sample"] for row in rows if row["kept"]]) > 0.5
    source, found = read_manifest(run / "rollouts"), read_manifest(folder)
    assert found.prompts.startswith(f"{source.prompts}, selected by lalp of the teacher: ")
    assert (found.teacher, found.samples, found.num_prompts) == (source.teacher, 1, 12)
    record = json.loads((folder / "selection.json").read_text())
    assert record["source"] == str(run / "rollouts") and record["settings"]["score"] == "lalp"
    assert record["source_manifest"]["pairs"] == source.pairs


def test_a_share_of_the_prompts_and_only_right_responses_are_kept(run: Path) -> None:
    assert call(run, "--select.keep_share", "0.25", "--select.require_correct", "true") == 0
    right = {p.id: p.teacher_ids.tolist() for p in make_pairs(12)}
    kept = pairs_of(run / "select-lalp")
    assert [p.teacher_ids.tolist() for p in kept] == [right[p.id.removesuffix("#1")] for p in kept]
    assert len(kept) == 3 and summary(run)["prompts_below_share"] == 9


def test_a_selection_can_be_selected_from_again(run: Path) -> None:
    assert call(run, "--select.score", "correct") == 0
    source = str(run / "select-correct")
    assert call(run, "--select.rollouts", source, "--select.score", "naturalness", "--select.keep_share", "0.5") == 0
    assert len(pairs_of(run / "select-naturalness")) == 6


def test_an_interrupted_selection_goes_on_and_a_finished_one_is_left(run: Path) -> None:
    assert call(run) == 0
    folder = run / "select-lalp"
    scores = pq.read_table(folder / "scores.parquet")
    first, kept = summary(run), pairs_of(folder)
    assert call(run) == 0 and summary(run) == first
    # As a kill leaves it between the scores of the first part and those of the second.
    for left in (folder / "summary.json", folder / "scores.parquet", folder / "parts" / "block-00001.parquet"):
        left.unlink()
    (folder / "scores").mkdir()
    half = scores.slice(0, 12).drop_columns(["kept"])
    pq.write_table(half, folder / "scores" / "block-00000.parquet")
    assert call(run) == 0
    assert pq.read_table(folder / "scores.parquet").equals(scores)
    assert summary(run)["tokens_read"] < first["tokens_read"]
    assert [p.id for p in pairs_of(folder)] == [p.id for p in kept]


def test_another_setting_or_source_in_the_same_place_is_refused(run: Path) -> None:
    assert call(run, "--select.score", "correct") == 0
    with pytest.raises(RunDirectoryError, match=r"select\.keep_share"):
        call(run, "--select.score", "correct", "--select.keep_share", "0.5")
    other = write_rollouts(run / "rollouts-2", 4)
    (run / "rollouts").rename(run / "rollouts-1")
    other.rename(run / "rollouts")
    with pytest.raises(DataError, match="a selection made with another source_manifest"):
        call(run, "--select.score", "correct")


def test_json_is_all_that_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, "--select.score", "correct", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 12


def test_a_dry_run_writes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.iterdir())
    assert call(run, "--dry-run") == 0
    assert "score: lalp" in capsys.readouterr().out and sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "argv", "message"),
    [
        ({"answer": None}, ["--select.score", "correct"], r"no gold answer|no prompt has a gold answer"),
        ({"answer": None}, ["--select.require_correct", "true"], r"rollouts\.prompts\.answer_key"),
        ({"teacher_ids": [50, 51, 52]}, [], r"more than one step.*select\.steps to sentences"),
        ({"teacher_ids": [2]}, [], r"no usable response.*no text in it"),
        ({}, ["--distill.max_length", "3"], r"longer than distill\.max_length 3"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_a_cure(
    run: Path, change: dict[str, object], argv: list[str], message: str
) -> None:
    change_rows(run / "rollouts", change)
    with pytest.raises(DataError, match=message):
        call(run, *argv)


def test_teacher_steps_are_those_of_the_teacher_that_wrote_them(run: Path) -> None:
    with pytest.raises(DataError, match=r"made with teacher .*, this run has teacher"):
        call(run, "--select.score", "divergence", "--teacher.path", "tiny:teacher-weak")


def test_wrong_responses_alone_leave_nothing(run: Path) -> None:
    change_rows(run / "rollouts", {"answer": "#### 99999"})
    with pytest.raises(DataError, match=r"12 have no response with the gold answer.*select\.require_correct false"):
        call(run, "--select.require_correct", "true")


def test_responses_without_a_second_token_have_no_aslec_score_and_are_counted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_rows(run / "rollouts", {"teacher_ids": [50]}, samples=[1])
    assert call(run, "--select.score", "aslec_drop") == 0
    assert "12 responses have no score" in capsys.readouterr().out
    assert all(not p.id.endswith("#1") for p in pairs_of(run / "select-aslec_drop"))


def test_unusable_responses_are_rejected_with_reasons(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_rows(run / "rollouts", {"teacher_ids": [9999]}, samples=[0])
    assert call(run, "--select.score", "correct") == 0
    assert "12 responses are left out; the first: block 0, prompt 'tiny-2-0', sample 0" in capsys.readouterr().err
    assert len((run / "select-correct" / "rejects.jsonl").read_text().splitlines()) == 12


def test_the_students_own_responses_can_be_scored(run: Path) -> None:
    assert call(run, "--select.side", "student", "--select.score", "naturalness") == 0
    own = summary(run, "naturalness")["mean_score"]
    other = run / "other"
    assert call(other, "--select.rollouts", str(run / "rollouts"), "--select.score", "naturalness") == 0
    assert own != summary(other, "naturalness")["mean_score"]


def test_teachers_are_ranked_on_the_prompts_they_share(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = run / "good", run / "bad"
    write_rollouts(good / "rollouts", 30)
    two_samples(bad, 24)
    options = ("--select.score", "lalp", "--rank-teachers", str(bad), str(good))
    assert call(run, *options) == 0
    output = capsys.readouterr().out
    assert "24 shared prompts" in output and "teacher-ranking" in output
    assert output.index("good") < output.index("bad")
    found = json.loads((run / "teacher-ranking" / "lalp.json").read_text())
    assert [t["name"] for t in found["teachers"]] == ["good", "bad"]
    assert found["teachers"][1]["difference_high"] < 0
    assert found["rollouts"]["good"] == str(good / "rollouts")
    assert call(run, *options, "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_shared_prompts"] == 24


def test_a_ranking_needs_two_teachers_the_same_prompts_and_the_students_tokenizer(run: Path) -> None:
    with pytest.raises(ConfigError, match="two teachers"):
        call(run, "--rank-teachers", str(run))
    with pytest.raises(ConfigError, match=r"keep_share has no effect"):
        call(run, "--rank-teachers", str(run), str(run / "once"), "--select.keep_share", "0.5")
    with pytest.raises(ConfigError, match=r"divergence cannot rank teachers"):
        call(run, "--rank-teachers", str(run), str(run / "once"), "--select.score", "divergence")
    other = write_rollouts(run / "other", 12)
    change_rows(other, {"prompt_ids": [7, 8]})
    with pytest.raises(DataError, match="is another one than that of"):
        call(run, "--rank-teachers", str(run), str(other))
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace(read_manifest(other).tokenizer, "0" * 16))
    with pytest.raises(DataError, match="made with tokenizer 0000"):
        call(run, "--rank-teachers", str(run), str(other))
