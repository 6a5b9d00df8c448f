"""Send a job of this project to a running cluster, follow its log, end as it ends. Knows no roles, models or actors.

Ctrl-C leaves the job running and says how to follow or stop it.
"""

from __future__ import annotations

import argparse
import difflib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from jobs.cli import EXIT_USAGE
from jobs.ops.job_server import (
    EXIT_DETACHED,
    SAVE_S,
    connect,
    explained,
    follow_to_its_end,
    list_jobs,
    say_how_to_go_on,
    state,
    stop,
)
from jobs.ops.submission import (
    ASIDE,
    PACKAGES,
    STOP_WAIT,
    Submission,
    SubmissionError,
    check_no_secrets,
    chosen_variables,
    failure_reason,
    option_value,
    plain_line,
    stage,
    with_option,
)
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError

CONFIGURED = ("calibrate", "demo", "distill", "evaluate", "pipeline", "rollouts", "select", "sft")
JOBS = (*CONFIGURED, "compare", "merge_rollouts")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"

_ROOT = Path(__file__).resolve().parents[2]
_CHECK_TIMEOUT_S = 300


def main(argv: list[str]) -> int:
    """Send and follow, or one of the other actions."""
    split = argv.index("--") if "--" in argv else len(argv)
    parser, job = _parser(), argv[split + 1 :]
    own, surplus = parser.parse_known_args(argv[:split])
    if surplus:
        raise ConfigError(f"{' '.join(surplus)}: no option of jobs.submit; a job and its options stand after --")
    given = {name for name, value in vars(own).items() if value != parser.get_default(name)}
    action = next((name for name in ("follow", "status", "stop", "list") if name in given), None)
    if action and (job or given - {"address", action}):
        raise ConfigError(f"--{action} takes nothing but --address")
    address = _address(own.address)
    if action is None:
        return _submit(own, job, address)
    with explained(address):
        client = connect(address)
        if action == "list":
            return list_jobs(client)
        if action == "status":
            print(state(client.get_job_info(own.status)))
            return 0
        if action == "stop":
            return stop(client, own.stop)
        client.get_job_info(own.follow)  # refuses a job that is not there
    return follow_to_its_end(client, own.follow, address)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit",
        usage="%(prog)s [options] -- jobs.NAME [options of the job]",
        description="Send a job to a running cluster, follow its log, end as it ends.",
        epilog=f"jobs: {', '.join(JOBS)}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--address",
        metavar="URL",
        help=f"job server (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or {DEFAULT_ADDRESS})",
    )
    parser.add_argument("--env", nargs="+", action="extend", default=[], metavar="NAME", help="variables to send along")
    parser.add_argument(
        "--visible-env",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="the same for secrets: whoever reaches the job server can then read them",
    )
    parser.add_argument("--submission-id", metavar="ID", help="name of the job on the cluster (default: made up)")
    parser.add_argument("--detach", action="store_true", help="print the id and leave")
    parser.add_argument("--no-check", action="store_true", help="send without the dry run on this machine")
    parser.add_argument("--driver-gpus", type=float, default=0.0, metavar="N", help="GPUs of the driver itself")
    parser.add_argument(
        "--driver-role",
        choices=["student", "teacher", "judge", "rollout"],
        help="run the driver on a node of this role (default: on the head)",
    )
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--follow", metavar="ID", help="follow the log of a job, end as it ends")
    actions.add_argument("--status", metavar="ID", help="state of a job")
    actions.add_argument("--stop", metavar="ID", help="stop a job")
    actions.add_argument("--list", action="store_true", help="jobs of the cluster, the newest first")
    return parser


def _address(given: str | None) -> str:
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    address = given or next((os.environ[name] for name in names if os.environ.get(name)), DEFAULT_ADDRESS)
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError(
            f"address {address}: the job server's is asked for, which looks like {DEFAULT_ADDRESS};"
            " --address wins over RAY_API_SERVER_ADDRESS, and that over RAY_ADDRESS"
        )
    if url.username or url.password:
        raise ConfigError("the address holds a user or a password: leave them out; Ray's token is RAY_AUTH_TOKEN_PATH")
    if url.scheme == "http" and url.hostname not in ("127.0.0.1", "localhost", "::1"):
        print(f"note: code and token go to {url.hostname} unencrypted; a tunnel would hide them", file=sys.stderr)
    return address.rstrip("/")


def _submit(own: argparse.Namespace, job: list[str], address: str) -> int:
    submission = make_submission(own, job)
    with explained(address):
        client = connect(address)
        if not own.no_check:
            _check_here(job)
        with tempfile.TemporaryDirectory(prefix="vcrd-submit-") as folder:
            size_mib = stage(submission, _ROOT, Path(folder)) / 1024**2
            print(f"{submission.id}: {size_mib:.1f} MiB of code to {address}, the same as", file=sys.stderr)
            print(f"  {plain_line(submission, address)}", file=sys.stderr, flush=True)
            try:
                client.submit_job(
                    entrypoint=submission.command,
                    submission_id=submission.id,
                    runtime_env={"working_dir": folder, "env_vars": dict(submission.env)},
                    entrypoint_num_gpus=submission.driver_gpus or None,
                    entrypoint_resources=submission.driver_resources or None,
                )
            except KeyboardInterrupt:
                print(f"interrupted while sending; {submission.id} may have arrived: --list", file=sys.stderr)
                return EXIT_DETACHED
    if own.detach:
        print(submission.id)
        say_how_to_go_on(submission.id, address)
        return 0
    return follow_to_its_end(client, submission.id, address)


def make_submission(own: argparse.Namespace, job: Sequence[str]) -> Submission:
    """What the command line asks to send.

    Raises:
        ConfigError: no such job, no such config, results that would vanish.
        SubmissionError: variables or secrets that must not travel.
    """
    if not job:
        raise ConfigError(f"which job? python -m jobs.submit -- jobs.NAME ...; there are {', '.join(JOBS)}")
    name, options = job[0].removeprefix("jobs."), list(job[1:])
    if name not in JOBS:
        close = difflib.get_close_matches(name, JOBS, n=1)
        hint = f"did you mean jobs.{close[0]}?" if close else f"there are {', '.join(JOBS)}"
        raise ConfigError(f"{job[0]}: no job that can be submitted; {hint}")
    env = chosen_variables(own.env, own.visible_env, os.environ)
    taken = set(env) & {"PATH", "PYTHONPATH", "RAY_ADDRESS", "TORCH_EXTENSIONS_DIR"}
    if taken:
        raise ConfigError(f"--env {', '.join(sorted(taken))}: the nodes have their own; leave it out")
    check_no_secrets("\n".join(options), os.environ, where="the job's command line")

    config = option_value(options, "--config")
    aside = None
    if config is not None:
        file = Path(config).expanduser().resolve()
        if not file.is_file():
            raise ConfigError(f"--config {config}: no such file; shipped configs are in jobs/configs")
        check_no_secrets(file.read_text(encoding="utf-8"), os.environ, where=f"--config {config}")
        travels = file.is_relative_to(_ROOT) and file.relative_to(_ROOT).parts[0] in PACKAGES
        aside = None if travels else file
        options = with_option(options, "--config", str(file.relative_to(_ROOT)) if travels else f"{ASIDE}/{file.name}")
    if name in CONFIGURED:
        _check_run_directory(name, options, config)
    return Submission(
        id=own.submission_id or f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        entrypoint=("python", "-m", f"jobs.{name}", *options),
        env={STOP_WAIT: str(SAVE_S), **env},
        aside=aside,
        driver_gpus=own.driver_gpus,
        driver_role=own.driver_role,
    )


def _check_run_directory(name: str, options: Sequence[str], config: str | None) -> None:
    from jobs.demo import DEFAULT_CONFIG

    file = Path(config).expanduser() if config else DEFAULT_CONFIG if name == "demo" else None
    section: dict[str, Any] = {}
    if file is not None:
        try:
            section = yaml.safe_load(file.read_text(encoding="utf-8"))["run"] or {}
        except (yaml.YAMLError, KeyError, TypeError):
            section = {}  # what is wrong with the file, the job's own check says better
    if option_value(options, "--run.storage") or section.get("storage"):
        return
    directory = option_value(options, "--run.dir") or str(section.get("dir", Config().run.dir))
    if not Path(directory).is_absolute():
        raise ConfigError(
            f"run.dir {directory}: on the cluster it would lie in the uploaded directory, which Ray deletes; give --run.dir"
            " an absolute path on storage that all nodes see, or --run.storage s3://BUCKET/NAME"
        )


def _check_here(job: Sequence[str]) -> None:
    """The job's own dry run on this machine: its config must be right; models and data may be on the cluster alone."""
    name = job[0].removeprefix("jobs.")
    if name not in CONFIGURED:
        return
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-m", f"jobs.{name}", *job[1:], "--dry-run"]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_CHECK_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise SubmissionError(f"the dry run took over {_CHECK_TIMEOUT_S} s; --no-check sends without it") from None
    if done.returncode == EXIT_USAGE:
        said = done.stderr.strip().removeprefix("config error: ")
        raise ConfigError(f"{said}\nnothing was sent; --no-check leaves such questions to the cluster")
    if done.returncode:
        print(f"note: the cluster must have what is not here: {failure_reason(done.stderr)}", file=sys.stderr)
