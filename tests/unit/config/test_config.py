"""What a person may write, and what they are told when it is wrong."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.cli import load_config
from vcrd_ray.config import Config
from vcrd_ray.config.base import THINKING
from vcrd_ray.config.data import JsonlPrompts
from vcrd_ray.config.models import OracleJudgeSection
from vcrd_ray.config.objective import UniformWeighting
from vcrd_ray.errors import ConfigError

JOBS = ("sft", "rollouts", "distill", "evaluate", "demo")
SHIPPED = sorted((Path(__file__).parents[3] / "jobs" / "configs").rglob("*.yaml"))


def load(*argv: str) -> Config:
    return load_config("distill", "", list(argv))[0]


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("given", "thinking"), [('["[THINK]", "[/THINK]"]', ("[THINK]", "[/THINK]")), ("null", None), (None, THINKING)]
)
def test_marks_of_thinking_are_a_setting(given: str | None, thinking: object) -> None:
    config, _ = load_config("evaluate", "", [] if given is None else ["--evaluate.thinking", given])
    assert config.evaluate.thinking == thinking


@pytest.mark.parametrize("given", ['["", "x"]', '["x", "x"]', '["x"]', '["x", "y", "z"]'])
def test_marks_of_thinking_are_two_different_texts(given: str) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.thinking"):
        load_config("evaluate", "", ["--evaluate.thinking", given])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_config_loads(path: Path) -> None:
    assert load("--config", str(path)).run.dir


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = file(tmp_path, "distill: {batch_size: 64, chunk_rows: 8}")
    config = load("--config", path, "--distill.batch_size", "32")
    assert (config.distill.batch_size, config.distill.chunk_rows, config.distill.micro_batch_size) == (32, 8, 8)


def test_unions_are_chosen_by_type_in_file_and_command_line(tmp_path: Path) -> None:
    path = file(tmp_path, "judge: {type: oracle}\nsft: {prompts: {type: jsonl, path: a.jsonl}}")
    config = load("--config", path, "--distill.objective.weighting.type", "uniform", "--distill.lora", "null")
    assert isinstance(config.judge, OracleJudgeSection) and isinstance(config.sft.prompts, JsonlPrompts)
    assert config.distill.objective.weighting == UniformWeighting() and config.distill.lora is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill: {batch_sise: 3}", "distill.batch_sise: unknown key; did you mean distill.batch_size?"),
        ("distill: {batch_size: many}", "distill.batch_size: Input should be a valid integer"),
        ("distill: {batch_size: 12}", "batch_size 12 is no multiple of micro_batch_size 8"),
        ("student: {ranks: 3}", "is no multiple of .*micro_batch_size x student.ranks"),
        ("distill: {train_head: true}", "distill.train_head needs full fine-tuning: set distill.lora to null"),
        (
            "distill: {train_head: true, lora: null}\nstudent: {zero_stage: 3}",
            "does not work with student.zero_stage 3",
        ),
        ("student: {zero_stage: 3, ranks: 2}", "cannot overlap: set distill.overlap false, or use stage 2"),
        ("distill: {objective: {lambda_teacher: 0, lambda_student: 0}}", "nothing to learn"),
        ("distill: {objective: {weighting: {type: uniform, w_max: 3}}}", "w_max belongs to another type"),
        ("judge: {type: wise}", "judge"),
        ("judge: {type: oracle}\nrollouts: {prompts: {type: jsonl, path: x}}", "oracle knows only the tiny world"),
        ("teacher: {path: [1]}", "teacher.path: Input should be a valid string"),
        ("- a", "expected sections"),
        ("a: [", "not valid YAML"),
    ],
)
def test_mistakes_are_named_with_their_key_and_cure(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("--config", file(tmp_path, text))


def test_unknown_options_are_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean --distill\.objective\.on_teacher\.alpha\?"):
        load("--distill.objective.on_teache.alpha", "0.2")


def test_a_missing_config_file_is_named() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load("--config", "nowhere.yaml")


@pytest.mark.parametrize("job", JOBS)
def test_help_answers_at_once_without_torch(job: str) -> None:
    program = (
        f"import sys, runpy; sys.argv = ['jobs.{job}', '--help']\n"
        "try: runpy.run_module('jobs.%s', run_name='__main__')\n" % job + "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules), 'heavy import'"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    assert "--distill.objective.on_teacher.alpha" in done.stdout
    assert time.perf_counter() - started < 10  # 2 s on a quiet machine; this only catches a heavy import


def test_config_errors_exit_with_2_and_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobs.distill", "--distill.bach_size", "3"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean" in done.stderr
