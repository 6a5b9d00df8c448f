"""What a person can get wrong, through the jobs: one clear error each, before anything is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs import distill, evaluate, rollouts, sft
from jobs.cli import load_config
from tests.conftest import write_rollouts
from vcrd_ray.config import Config
from vcrd_ray.errors import DataError, ModelError, RunDirectoryError
from vcrd_ray.models.checkpoint_files import resolve_model
from vcrd_ray.runs.directory import RunDirectory


def config(tmp_path: Path, *argv: str) -> Config:
    return load_config("distill", "", ["--run.dir", str(tmp_path / "run"), *argv])[0]


def other_tokenizer(tmp_path: Path, name: str) -> Path:
    """A copy of a shipped model whose tokenizer has two ids changed about."""
    path = Path(shutil.copytree(resolve_model(name), tmp_path / "other"))
    file = path / "tokenizer.json"
    text = file.read_text()
    swapped = text.replace('"A": ', '"@@": ').replace('"B": ', '"A": ').replace('"@@": ', '"B": ')
    assert swapped != text
    file.write_text(swapped)
    return path


@pytest.mark.parametrize("key", ["student", "teacher", "judge"])
def test_a_missing_model_is_named_before_anything_starts(tmp_path: Path, key: str) -> None:
    extra = ["--judge.type", "value_head"] if key == "judge" else []
    with pytest.raises(ModelError, match="/nowhere/x: no such directory"):
        distill.run(config(tmp_path, f"--{key}.path", "/nowhere/x", *extra))


@pytest.mark.parametrize("key", ["teacher", "judge"])
def test_a_tokenizer_that_does_not_fit_the_students_is_refused(tmp_path: Path, key: str) -> None:
    path = other_tokenizer(tmp_path, "tiny:teacher" if key == "teacher" else "tiny:prm")
    extra = ["--judge.type", "value_head"] if key == "judge" else []
    with pytest.raises(ModelError, match="differ"):
        distill.run(config(tmp_path, f"--{key}.path", str(path), *extra))


def test_a_missing_calibration_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.json: cannot be read .* run jobs\.calibrate"):
        distill.run(config(tmp_path, "--judge.type", "value_head", "--judge.calibration", "nowhere.json"))


def test_rollouts_of_another_teacher_are_refused(tmp_path: Path) -> None:
    made = write_rollouts(tmp_path / "rollouts", 4)
    with pytest.raises(DataError, match="made with teacher"):
        distill.run(config(tmp_path, "--distill.rollouts", str(made), "--teacher.path", "tiny:teacher-weak"))


def test_missing_rollouts_name_the_job_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run jobs\.rollouts first"):
        distill.run(config(tmp_path))


@pytest.mark.parametrize(("job", "section"), [(sft, "sft"), (rollouts, "rollouts")])
def test_an_empty_or_missing_data_set_is_refused(tmp_path: Path, job: object, section: str) -> None:
    missing = config(tmp_path, f"--{section}.prompts.type", "jsonl", f"--{section}.prompts.path", "/nowhere/a.jsonl")
    with pytest.raises(DataError, match="no such file"):
        job.run(missing)  # type: ignore[attr-defined]


def test_an_empty_evaluation_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    chosen = config(
        tmp_path, "--evaluate.prompts.type", "jsonl", "--evaluate.prompts.path", str(tmp_path / "empty.jsonl")
    )
    with pytest.raises(DataError, match="no usable row"):
        evaluate.run(chosen, label="x")


def test_a_second_job_in_the_same_run_directory_is_refused(tmp_path: Path) -> None:
    chosen = config(tmp_path)
    with (
        RunDirectory(chosen.run.dir, "distill", chosen, sections=distill.SECTIONS),
        pytest.raises(RunDirectoryError, match="in use by process"),
    ):
        distill.run(chosen)


def test_dry_run_prints_config_and_placement_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--run.dir", str(tmp_path / "run"), "--student.ranks", "2", "--cluster.pools", "separate", "--dry-run"]
    assert distill.main(argv) == 0
    shown = capsys.readouterr().out
    assert "2 x student: 1 CPU, 1 student each" in shown and "1 x judge: 1 CPU, 1 judge each" in shown
    assert "w_max: 10.0" in shown and not (tmp_path / "run").exists()


def test_dry_run_refuses_what_the_run_would_refuse(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such directory"):
        distill.main(["--run.dir", str(tmp_path / "run"), "--teacher.path", "/nowhere/x", "--dry-run"])
