"""Send a job of this project to a running cluster, follow its log, end as it ends. Knows no roles, models or actors.

Ctrl-C leaves the job running and says how to follow or stop it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from jobs.ops.arguments import make_parser, server_address
from jobs.ops.job_server import (
    EXIT_DETACHED,
    connect,
    explained,
    follow_to_its_end,
    list_jobs,
    say_how_to_go_on,
    stop,
)
from jobs.ops.outcome import state
from jobs.ops.request import ROOT, check_here, make_submission
from jobs.ops.submission import plain_line
from jobs.ops.upload import stage
from vcrd_ray.errors import ConfigError


def main(argv: list[str]) -> int:
    """Send and follow, or one of the other actions."""
    split = argv.index("--") if "--" in argv else len(argv)
    parser, job = make_parser(), argv[split + 1 :]
    own, surplus = parser.parse_known_args(argv[:split])
    if surplus:
        raise ConfigError(f"{' '.join(surplus)}: no option of jobs.submit; a job and its options stand after --")
    given = {name for name, value in vars(own).items() if value != parser.get_default(name)}
    action = next((name for name in ("follow", "status", "stop", "list") if name in given), None)
    if action and (job or given - {"address", action}):
        raise ConfigError(f"--{action} takes nothing but --address")
    address = server_address(own.address)
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


def _submit(own: argparse.Namespace, job: list[str], address: str) -> int:
    submission = make_submission(own, job)
    with explained(address):
        client = connect(address)
        if not own.no_check:
            check_here(job)
        with tempfile.TemporaryDirectory(prefix="vcrd-submit-") as folder:
            size_mib = stage(submission, ROOT, Path(folder)) / 1024**2
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
