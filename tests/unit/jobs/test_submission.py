"""What is sent with a job, what is kept back, and how a log is followed over a connection that breaks."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from jobs.ops import submit
from jobs.ops.arguments import make_parser, server_address
from jobs.ops.follow import LogPosition, Patience, follow_log
from jobs.ops.options import option_value, with_option
from jobs.ops.outcome import exit_code, failure_reason
from jobs.ops.request import JOBS, make_submission
from jobs.ops.submission import PACKAGES, Submission, SubmissionError, plain_line
from jobs.ops.upload import MAX_UPLOAD_MIB, stage
from jobs.ops.variables import check_no_secrets, chosen_variables, looks_secret
from vcrd_ray.errors import ConfigError

LOG = "one\ntwo\nthree\nfour\n"
HASTY = Patience(silence_s=5.0, give_up_s=5.0, first_pause_s=0.0, max_pause_s=0.0)


def submission(*argv: str) -> Submission:
    """What `python -m jobs.submit ARGV` would send."""
    split = argv.index("--")
    return make_submission(make_parser().parse_args(argv[:split]), argv[split + 1 :])


class Cluster:
    """A job client whose streams break off where a test says."""

    def __init__(self, *streams: str | Exception, statuses: Sequence[str] = ("SUCCEEDED",)) -> None:
        self._streams, self._statuses = list(streams), list(statuses)

    async def tail_job_logs(self, job_id: str) -> AsyncGenerator[str, None]:
        text, end = self._streams.pop(0), None
        if isinstance(text, Exception):
            raise text
        if text.endswith("!"):
            text, end = text[:-1], RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
        for start in range(0, len(text), 5):
            yield text[start : start + 5]
        if end:
            raise end

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        status = self._statuses.pop(0)
        return SimpleNamespace(
            status=SimpleNamespace(is_terminal=lambda: status in ("SUCCEEDED", "FAILED")), name=status
        )


def follow(cluster: Cluster, patience: Patience = HASTY) -> str:
    return str(asyncio.run(follow_log(cluster, "job", lost=(OSError, RuntimeError), patience=patience)).name)


@pytest.mark.parametrize("cut", range(0, len(LOG) + 1, 3))
def test_a_log_is_shown_once_however_its_stream_breaks(cut: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(Cluster(LOG[:cut] + "!", "!", LOG[: cut // 2] + "!", ConnectionError("refused"), LOG)) == "SUCCEEDED"
    said = capsys.readouterr()
    assert said.out == LOG
    assert said.err.count("connection lost") in (1, 2)


def test_a_stream_that_ends_before_the_job_is_taken_up_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(Cluster(LOG[:4], LOG, statuses=["RUNNING", "FAILED"])) == "FAILED"
    said = capsys.readouterr()
    assert (said.out, said.err) == (LOG, "")


def test_a_silent_stream_of_a_job_that_ended_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    class Silent(Cluster):
        async def tail_job_logs(self, job_id: str) -> AsyncGenerator[str, None]:
            yield "last words\n"
            await asyncio.Event().wait()

    assert follow(Silent(), Patience(silence_s=0.01)) == "SUCCEEDED"
    assert capsys.readouterr().out == "last words\n"


def test_following_gives_up_without_contact_and_says_how_to_go_on() -> None:
    impatient = Patience(give_up_s=-1.0, first_pause_s=0.0)
    with pytest.raises(SubmissionError, match=r"refused.*--follow job"):
        follow(Cluster(ConnectionError("refused")), impatient)


def test_a_job_that_the_cluster_does_not_know_is_not_waited_for() -> None:
    with pytest.raises(SubmissionError, match="knows no such job"):
        follow(Cluster(RuntimeError("Request failed with status code 404: Job job does not exist.")))


def test_a_position_counts_what_was_shown_over_restarts() -> None:
    position = LogPosition()
    assert position.unseen("abc") == "abc"
    position.restart()
    assert [position.unseen(part) for part in ("ab", "cd", "e")] == ["", "d", "e"]


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("HF_TOKEN", "x", True),
        ("WANDB_API_KEY", "x", True),
        ("AWS_ACCESS_KEY_ID", "x", True),
        ("openai_apikey", "x", True),
        ("DB_PASSWORD", "x", True),
        ("DATABASE", "postgres://me:hidden@db/x", True),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("RAY_AUTH_TOKEN_PATH", "/home/me/token", False),
        ("RAY_AUTH_MODE", "token", False),
        ("HF_HOME", "/shared/huggingface", False),
        ("PROXY", "http://proxy:3128", False),
    ],
)
def test_secrets_are_told_by_name_or_by_a_password_in_an_address(name: str, value: str, secret: bool) -> None:
    assert looks_secret(name, value) is secret


def test_a_secret_travels_only_when_its_visibility_is_accepted() -> None:
    environ = {"HF_TOKEN": "hf_abcdefgh", "HF_HOME": "/shared"}
    with pytest.raises(SubmissionError, match="--visible-env HF_TOKEN") as refused:
        chosen_variables(["HF_TOKEN"], [], environ)
    assert "hf_abcdefgh" not in str(refused.value)
    assert chosen_variables(["HF_HOME"], ["HF_TOKEN"], environ) == environ
    assert chosen_variables([], [], environ) == {}


@pytest.mark.parametrize(("given", "said"), [("HF_TOKEN=hf_abc", "give the name"), ("ABSENT", "not set here")])
def test_a_variable_is_given_by_name_and_must_be_set(given: str, said: str) -> None:
    with pytest.raises(SubmissionError, match=said) as refused:
        chosen_variables([given], [], {"HF_TOKEN": "hf_abc"})
    assert "hf_abc" not in str(refused.value)


def test_a_secrets_value_in_command_line_or_config_is_refused_without_repeating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "sk-0123456789")
    config = tmp_path / "my.yaml"
    config.write_text("run:\n  dir: /shared/sk-0123456789\n")
    for argv in (["--run.dir", "/shared/sk-0123456789"], ["--config", str(config)]):
        with pytest.raises(SubmissionError, match="SOME_API_KEY") as refused:
            submission("--", "distill", *argv)
        assert "0123456789" not in str(refused.value)
    check_no_secrets("a key is short", {"KEY": "key"}, where="here")


def test_the_plain_line_masks_values_and_survives_a_shell() -> None:
    sent = Submission(
        id="one",
        entrypoint=("python", "-m", "jobs.distill", "--prompt.suffix", "it's $HOME; `x`"),
        env={"MODE": "hidden value"},
        extra_config=Path("/some where/my.yaml"),
        driver_gpus=1.0,
        driver_role="judge",
    )
    line = plain_line(sent, "http://127.0.0.1:8265")
    assert "hidden value" not in line
    copy, _, command = line.rpartition(" && ")
    assert shlex.split(copy) == ["mkdir", "-p", "submitted", "&&", "cp", "/some where/my.yaml", "submitted/"]
    words = shlex.split(command)
    options, entrypoint = words[: words.index("--")], words[words.index("--") + 1 :]
    assert tuple(entrypoint) == sent.entrypoint == tuple(shlex.split(sent.command))
    runtime_env = json.loads(options[options.index("--runtime-env-json") + 1])
    assert runtime_env["env_vars"] == {"MODE": "***"}
    assert runtime_env["excludes"] == ["/*", "!.", "!/actors", "!/jobs", "!/vcrd_ray", "!/submitted"]
    assert json.loads(options[options.index("--entrypoint-resources") + 1]) == {"judge": 1.0}
    assert options[options.index("--entrypoint-num-gpus") + 1] == "1"


def test_only_the_packages_and_the_config_travel(tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "folder"
    for name in (
        *(f"{package}/a.py" for package in PACKAGES),
        "jobs/__pycache__/a.pyc",
        "jobs/.env",
        "key.pem",
        "data/x",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("content")
    (tmp_path / "my.yaml").write_text("run: {}")
    sent = Submission(id="one", entrypoint=("true",), env={}, extra_config=tmp_path / "my.yaml")
    assert stage(sent, root, folder) == 3 * len("content")
    copied = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert copied == ["actors/a.py", "jobs/a.py", "submitted/my.yaml", "vcrd_ray/a.py"]


def test_models_among_the_code_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "folder"
    (root / "jobs").mkdir(parents=True)
    with (root / "jobs" / "model.safetensors").open("wb") as sparse:
        sparse.truncate((MAX_UPLOAD_MIB + 1) * 1024**2)
    with pytest.raises(SubmissionError, match=r"jobs/model\.safetensors"):
        stage(Submission(id="one", entrypoint=("true",), env={}), root, folder)
    assert not folder.exists()


def test_a_config_of_the_project_is_named_as_it_lies_there_and_another_one_is_taken_along(tmp_path: Path) -> None:
    shipped = submission("--", "demo", "--config", "jobs/configs/demo.yaml", "--run.dir=/shared/x")
    assert shipped.extra_config is None and shipped.entrypoint[3:5] == ("--config", "jobs/configs/demo.yaml")
    own = tmp_path / "my.yaml"
    own.write_text("run:\n  dir: /shared/x\n")
    sent = submission("--submission-id", "one", "--", "jobs.distill", f"--config={own}", "--method", "vcrd")
    assert sent.extra_config == own
    assert sent.entrypoint == ("python", "-m", "jobs.distill", "--config", "submitted/my.yaml", "--method", "vcrd")


def test_results_that_would_vanish_with_the_uploaded_directory_are_refused(tmp_path: Path) -> None:
    own = tmp_path / "my.yaml"
    own.write_text("run:\n  dir: runs/x\n")
    for argv in (["distill"], ["demo"], ["sft", "--run.dir", "runs/x"], ["sft", "--config", str(own)]):
        with pytest.raises(ConfigError, match=r"run\.dir runs/.*absolute path"):
            submission("--", *argv)
    assert submission("--", "sft", "--config", str(own), "--run.dir", "/shared/x").entrypoint[-1] == "/shared/x"
    kept = submission("--", "sft", "--run.dir", "runs/x", "--run.storage", "s3://bucket/x")
    assert kept.entrypoint[-1] == "s3://bucket/x" and kept.env == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    assert submission("--", "compare", "a", "b").entrypoint[-2:] == ("a", "b")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("run: {dir: /x}\nteacher: {path: caf\u00e9}".encode("latin1"), "line 2 is not UTF-8"),
        (b"run: [1]", "run: keys below it are expected, and there is a list"),
        (b"run: ~", "run: keys below it are expected, and there is nothing"),
        (b"- a", "expected sections with keys, found a list"),
        (b"run: {dir: /x}\nrun: {dir: y}", "run stands twice"),
        (b"run: [", "not valid YAML"),
    ],
)
def test_a_config_that_cannot_be_read_is_named_before_anything_is_sent(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said) as error:
        submission("--", "distill", "--config", str(tmp_path / "my.yaml"))
    assert "\n" not in str(error.value) and "my.yaml" in str(error.value)


@pytest.mark.parametrize("config", ["/nonexistent.yaml", "/tmp", "/" + "a" * 300, "~no-such-user/x.yaml"])
def test_a_config_that_is_no_file_is_named_before_anything_is_sent(config: str) -> None:
    with pytest.raises(ConfigError, match="--config "):
        submission("--", "distill", "--config", config)


def test_a_job_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean jobs\.distill\?"):
        submission("--", "jobs.distil")
    with pytest.raises(ConfigError, match="merge_rollouts"):
        submission("--", "rm")


def test_every_job_that_can_be_submitted_is_a_module() -> None:
    assert all((Path(submit.__file__).parents[1] / f"{name}.py").is_file() for name in JOBS)


@pytest.mark.parametrize(
    "argv",
    [
        ["--list", "--", "distill"],
        ["--follow", "x", "--detach"],
        ["--stop", "x", "--no-check"],
        ["distill"],
        ["--", "-m"],
    ],
)
def test_options_without_effect_are_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError):
        submit.main(argv)


@pytest.mark.parametrize(
    "address", ["auto", "127.0.0.1:6379", "ray://127.0.0.1:10001", "http://me:pass@127.0.0.1:8265"]
)
def test_an_address_that_is_no_job_servers_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as refused:
        server_address(address)
    assert "me:pass" not in str(refused.value)


def test_the_address_of_the_command_line_wins_over_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:2")
    assert server_address(None) == "http://127.0.0.1:2"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1/")
    assert server_address(None) == "http://127.0.0.1:1"
    assert server_address("http://127.0.0.1:3") == "http://127.0.0.1:3"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("Job failed, last logs:\nloading\nModelError: /x: no such directory\n", "ModelError: /x: no such directory"),
        ("a\nconfig error: no\nsecond line of it\n", "config error: no"),
        ("ValueError: first\nray.exceptions.RayTaskError: last\ndone\n", "ray.exceptions.RayTaskError: last"),
        ("The actor is not schedulable.\n\n", "The actor is not schedulable."),
        (None, "no reason given"),
    ],
)
def test_the_reason_is_the_line_of_the_error(message: str | None, reason: str) -> None:
    assert failure_reason(message) == reason


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", None, 1), ("FAILED", -9, 137), ("STOPPED", None, 143)],
)
def test_a_job_ends_with_the_code_of_its_driver(status: str, driver: int | None, code: int) -> None:
    assert exit_code(status, driver) == code


def test_the_last_value_of_an_option_counts_and_is_replaced_everywhere() -> None:
    options = ["--a", "1", "--b", "--a=2", "--a", "3"]
    assert option_value(options, "--a") == "3"
    assert option_value(["--a"], "--a") is None
    assert with_option(options, "--a", "4") == ["--a", "4", "--b"]


def test_an_id_that_would_change_a_url_is_refused() -> None:
    with pytest.raises(SubmissionError, match="letters"):
        Submission(id="a/../b", entrypoint=("true",), env={})
