"""What `python -m jobs.submit` takes, and which job server is meant."""

from __future__ import annotations

import argparse
import os
import sys
from urllib.parse import urlsplit

from jobs.ops.request import JOBS
from vcrd_ray.errors import ConfigError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"


def make_parser() -> argparse.ArgumentParser:
    """Options of jobs.submit itself; those of the job stand after --."""
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


def server_address(given: str | None) -> str:
    """The one given, or that of the environment, without a slash behind it.

    Raises:
        ConfigError: it is no job server's, or holds a password.
    """
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
