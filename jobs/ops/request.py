"""The command line of jobs.submit -> the job that is sent; refuses what would fail or vanish there. Asks no cluster."""

from __future__ import annotations

import argparse
import difflib
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jobs.cli import EXIT_USAGE
from jobs.ops.job_server import SAVE_S
from jobs.ops.options import option_value, with_option
from jobs.ops.outcome import failure_reason
from jobs.ops.submission import CONFIG_FOLDER, PACKAGES, STOP_WAIT, Submission, SubmissionError
from jobs.ops.variables import check_no_secrets, chosen_variables
from jobs.settings import read_sections
from vcrd_ray.config import Config
from vcrd_ray.config.yaml_files import read_yaml_text
from vcrd_ray.errors import ConfigError

CONFIGURED = ("calibrate", "demo", "distill", "evaluate", "pipeline", "rollouts", "select", "sft")
JOBS = (*CONFIGURED, "compare", "merge_rollouts")
ROOT = Path(__file__).resolve().parents[2]

_CHECK_TIMEOUT_S = 300


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
    extra_config = None
    if config is not None:
        file = _expanded(config).resolve()
        check_no_secrets(read_yaml_text(file, what="--config"), os.environ, where=f"--config {config}")
        travels = file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PACKAGES
        extra_config = None if travels else file
        options = with_option(
            options, "--config", str(file.relative_to(ROOT)) if travels else f"{CONFIG_FOLDER}/{file.name}"
        )
    if name in CONFIGURED:
        _check_run_directory(name, options, config)
    return Submission(
        id=own.submission_id or f"{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
        entrypoint=("python", "-m", f"jobs.{name}", *options),
        env={STOP_WAIT: str(SAVE_S), **env},
        extra_config=extra_config,
        driver_gpus=own.driver_gpus,
        driver_role=own.driver_role,
    )


def _expanded(config: str) -> Path:
    try:
        return Path(config).expanduser()
    except RuntimeError:
        raise ConfigError(f"--config {config}: no such user here, so no home directory") from None


def _check_run_directory(name: str, options: Sequence[str], config: str | None) -> None:
    from jobs.demo import DEFAULT_CONFIG

    file = _expanded(config) if config else DEFAULT_CONFIG if name == "demo" else None
    section: dict[str, Any] = {}
    if file is not None:
        section = read_sections(file).get("run", {})
        if not isinstance(section, dict):
            found = "nothing" if section is None else f"a {type(section).__name__}"
            raise ConfigError(f"--config {config}: run: keys below it are expected, and there is {found}")
    if option_value(options, "--run.storage") or section.get("storage"):
        return
    directory = option_value(options, "--run.dir") or str(section.get("dir", Config().run.dir))
    if not Path(directory).is_absolute():
        raise ConfigError(
            f"run.dir {directory}: on the cluster it would lie in the uploaded directory, which Ray deletes; give --run.dir"
            " an absolute path on storage that all nodes see, or --run.storage s3://BUCKET/NAME"
        )


def check_here(job: Sequence[str]) -> None:
    """The job's own dry run on this machine: its config must be right; models and data may be on the cluster alone."""
    name = job[0].removeprefix("jobs.")
    if name not in CONFIGURED:
        return
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
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
