"""What a person may write, and what they are told when it is wrong."""

import importlib
import math
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs import distill
from jobs.cli import load_config
from jobs.reads import READS
from vcrd_ray.config import Config
from vcrd_ray.config.base import THINKING, keys
from vcrd_ray.config.data import JsonlPrompts
from vcrd_ray.config.methods import METHODS, with_method
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
        ("a: [", "not valid YAML: line 1: "),
        ("run: {seed: 1}\nrun: {seed: 2}", "run stands twice, in lines 1 and 2; keep one"),
        ("distill: {batch_size: 64, epochs: 2, batch_size: 32}", "distill.batch_size stands twice"),
        ("plan: {prices: [{a: 1, a: 2}]}", "plan.prices.0.a stands twice"),
        ("run: ~", r"c\.yaml: run: keys below it are expected, and there is nothing"),
        ("run:\n  # seed: 3", "run: keys below it are expected, and there is nothing"),
        ("run: [1]", r"c\.yaml: run: keys below it are expected, and there is a list"),
        ("distill: {optim: [1]}", "distill.optim: keys below it are expected, and there is a list"),
        ("judge: hello", "judge: keys below it are expected, and there is a str"),
        ("Distill: {epochs: 3}", "Distill: unknown key; did you mean distill"),
        ("1: 2", "the key 1 is no text; write it in quotes"),
        ("run: &run {dir: *run}", "an anchor holds itself"),
        ("run: " + "[" * 3000, "nested too deeply"),
        ("run: {seed: !!int ''}", "not valid YAML"),
        ("run: {must_save_by: 2030-13-45}", "not valid YAML: month must be in 1..12"),
        ("run: {seed: 1}\n---\nrun: {seed: 2}", "2 documents"),
        ("distill: {epochs: yes}", "distill.epochs: Input should be a valid number.*got 'yes'"),
        ("distill: {epochs: true}", "distill.epochs: Input should be a valid number.*got 'true'"),
        ("distill: {optim: {betas: [true, 0.9]}}", "distill.optim.betas.0: Input should be a valid number"),
        ("world: {max_steps: off}", "world.max_steps: Input should be a valid integer.*got 'off'"),
        ("evaluate: {instruct: {endpoint: {limits: {attempts: true}}}}", "attempts: Input should be a valid integer"),
        ("run: {must_save_by: 1:30}", r"must_save_by: how long after the start \(01:30:00\)"),
        ("run: {must_save_by: true}", r"must_save_by: how long after the start \(01:30:00\)"),
        ("distill: {batch_size: 1:30}", "distill.batch_size: Input should be a valid integer.*got '1:30'"),
        ("rollouts: {prompts: {type: hf, path: a/b, revision: 1234567}}", "got 1234567; write it in quotes"),
        ("distill.optim.lr: 0.1", r"a dot opens no section in a file: write distill: \{optim: \{lr: \.\.\.\}\}"),
        ("distill: {optim.lr: 0.1}", r"a dot opens no section in a file: write optim: \{lr: \.\.\.\}"),
        (
            "rollouts: {prompts: {count: 10}}",
            "rollouts.prompts: which type. give rollouts.prompts.type, one of tiny, jsonl",
        ),
        ("rollouts: {prompts: {type: mix, count: 4, sources: [{share: 1, prompts: {path: x}}]}}", "which type.*jsonl"),
        ("judge: {type: [1]}", "judge.type: .* is none of 'value_head'"),
        ('run: {project: "a\\0b"}', "holds a zero byte"),
        ('run: {project: "\\ud83d"}', "run.project: Input should be a valid string"),
        ("run: {dir: " + "a" * 300 + "}", "dir: a path with a name of 300 bytes"),
        ("student: {path: /x/" + "a" * 300 + "}", "student.path: a path with a name of 300 bytes"),
        ("evaluate: {math: {own: [{name: x, path: " + "\u00e9" * 200 + "}]}}", "path: a path with a name of 400 bytes"),
    ],
)
def test_mistakes_are_named_with_their_key_and_cure(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("--config", file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("distill: {batch_size: 0128}", "distill.batch_size", 128),
        ("distill: {batch_size: 0200}", "distill.batch_size", 200),
        ("distill: {batch_size: 1_024}", "distill.batch_size", 1024),
        ("distill: {batch_size: 0x80}", "distill.batch_size", 128),
        ("distill: {optim: {lr: 5e-5}}", "distill.optim.lr", 5e-5),
        ("distill: {optim: {lr: .5}}", "distill.optim.lr", 0.5),
        ("run: {must_save_by: 12:30:00}", "run.must_save_by", timedelta(hours=12, minutes=30)),
        ("run: {must_save_by: 01:30}", "run.must_save_by", timedelta(hours=1, minutes=30)),
        ("run: {must_save_by: 2030-01-31T18:00:00Z}", "run.must_save_by", datetime(2030, 1, 31, 18, tzinfo=UTC)),
        ("sft: {packing: yes}", "sft.packing", True),
        ("sft: {packing: off}", "sft.packing", False),
        ("sft: {packing: true}", "sft.packing", True),
        ("run: {project: no}", "run.project", "no"),
        ("run: {project: 012}", "run.project", "012"),
        ("run: {project: 1:30}", "run.project", "1:30"),
        (
            "distill: {objective: {weighting: {type: ratio, w_max: .inf}}}",
            "distill.objective.weighting.w_max",
            math.inf,
        ),
        ("distill: {lora: ~}", "distill.lora", None),
        ("run: {dir: ~/x}", "run.dir", Path.home() / "x"),
    ],
)
def test_numbers_and_words_are_read_as_people_mean_them(tmp_path: Path, text: str, key: str, value: object) -> None:
    found: object = load("--config", file(tmp_path, text))
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("run: {project: caf\u00e9}".encode("latin1"), "c.yaml: line 1 is not UTF-8; save the file as UTF-8"),
        (b"\n\n" + bytes(range(128, 256)), "line 3 is not UTF-8"),
        (b"run: {project: \x07}", "special characters are not allowed"),
        (b"\xff\xfer", "not UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        load("--config", str(path))
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_mark_at_the_beginning_is_no_text(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "c.yaml").write_text("run: {project: caf\u00e9}", encoding=encoding)
    assert load("--config", str(tmp_path / "c.yaml")).run.project == "caf\u00e9"


@pytest.mark.parametrize(
    ("path", "said"), [("/tmp", "a folder"), ("/tmp/" + "a" * 300, "too long"), ("/tmp/a\0b", "null byte")]
)
def test_a_config_that_is_no_file_is_one_line(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load("--config", path)


def test_a_mistake_is_placed_where_it_was_written(tmp_path: Path) -> None:
    path = file(tmp_path, "run: {seed: x}\ndistill: {batch_size: x, epochs: 2}")
    with pytest.raises(ConfigError) as error:
        load("--config", path, "--distill.batch_size", "y", "--distill.chunk_rows", "z")
    lines = str(error.value).splitlines()
    assert [line.startswith(f"{path}: ") for line in lines] == [True, False, False]


@pytest.mark.parametrize(
    "options",
    [["--distill.lora", "[" * 50_000], ["--run.seed"], ["--resume", "perhaps"], ["--config"], ["--distill", "hello"]],
)
def test_a_command_line_that_cannot_be_read_is_one_line(options: list[str]) -> None:
    with pytest.raises(ConfigError, match="command line: ") as error:
        load(*options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("main", "options", "said"),
    [
        ("sft", ["--sft.skip", "true"], "jobs.sft does not read it; jobs.pipeline reads it"),
        ("sft", ["--teacher.path", "x"], "jobs.sft does not read it"),
        ("rollouts", ["--rollouts.refresh.every", "3"], "jobs.distill and jobs.pipeline read it"),
        ("rollouts", ["--student.dtype", "bfloat16"], "did you mean --teacher.dtype"),
        ("distill", ["--rollouts.samples", "2"], "jobs.rollouts and jobs.pipeline read it"),
        ("distill", ["--evaluate.model", "x"], "jobs.evaluate reads it"),
        ("select", ["--distill.rollouts", "x"], "did you mean --select.rollouts"),
        ("select", ["--distill", "{}", "--judge.type=oracle"], "--judge.type: jobs.select does not read it"),
        ("calibrate", ["--resume", "must"], "--run.resume: jobs.calibrate does not read it"),
        ("evaluate", ["--teacher.path", "x"], "did you mean --student.path"),
        ("evaluate", ["--evaluate.math.limit", "3"], "no effect without --suites math"),
        ("evaluate", ["--suites", "math", "--evaluate.sampling.top_p", "1"], "no effect with benchmarks"),
        ("evaluate", ["--evaluate.lm_eval.limit", "3"], "no effect without --backend lm-eval"),
        ("evaluate", ["--model", "x", "--evaluate.model", "y"], "no effect with --model"),
        ("evaluate", ["--model", "x", "--student.path", "y"], "no effect where another model is evaluated"),
        ("sft", ["--resume", "must", "--run.resume=never"], "give one of the two"),
        ("pipeline", ["--evaluate.model", "x"], "jobs.evaluate reads it"),
        ("demo", ["--plan.prices", "{}"], "jobs.demo does not read it"),
        ("tables", ["tiny", "--cluster.address", "x"], "jobs.tables tiny does not read it"),
        ("plan", ["--select.score", "rsr"], "jobs.select reads it"),
        ("doctor", ["--evaluate.model", "x"], "jobs.evaluate reads it"),
    ],
)
def test_a_key_that_a_job_does_not_read_is_refused_on_its_command_line(
    main: str, options: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        importlib.import_module(f"jobs.{main}").main(options)


def test_a_file_may_hold_keys_of_other_jobs(tmp_path: Path) -> None:
    path = file(tmp_path, "distill: {rollouts: x}\nevaluate: {model: y}\nselect: {score: rsr}")
    assert load_config("select", "", ["--config", path, "--select.window", "2"], any_key=False)[0].select.score == "rsr"


def test_no_job_reads_keys_that_are_none() -> None:
    known = {key for key, _ in keys(Config)}
    assert all(read <= known for read in READS.values())
    # Every key is some job's.
    assert known - frozenset().union(*READS.values()) == set()


@pytest.mark.parametrize("transport", ["hidden", "top_k", "logits"])
@pytest.mark.parametrize(
    "others",
    [
        {},
        {
            "judge": {"type": "step_tags", "path": "x", "template": "rlhflow"},
            "distill": {"objective": {"lambda_teacher": 0, "weighting": {"type": "student_score"}}},
        },
        {"rollouts": {"refresh": {"every": 2}}},
        {"distill": {"objective": {"lambda_teacher": 0}}},
        {"distill": {"objective": {"lambda_student": 0}}},
    ],
    ids=["plain", "step_tags", "refresh", "no teacher prefixes", "no student prefixes"],
)
def test_every_method_fits_the_run_or_is_refused_in_one_line(transport: str, others: dict[str, Any]) -> None:
    config = Config.model_validate({"teacher": {"transport": transport}, **others})
    for method in METHODS:
        try:
            chosen = with_method(config, method)
        except ConfigError as error:
            assert str(error).startswith(f"method {method} does not fit this run: ") and "\n" not in str(error)
        else:
            assert Config.model_validate(chosen.model_dump(round_trip=True)) == chosen


def test_a_method_that_does_not_fit_is_a_config_error_of_the_job() -> None:
    with pytest.raises(ConfigError, match=r"method vcrd_prob does not fit .* set teacher\.transport to hidden"):
        distill.main(["--method", "vcrd_prob", "--teacher.transport", "top_k", "--dry-run"])


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
