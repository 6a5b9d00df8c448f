"""Talk to a cluster's job server: connect, follow a job, stop one, list all; what goes wrong in words with a cure."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jobs.ops.follow import follow_log
from jobs.ops.outcome import exit_code, failure_reason, state
from jobs.ops.submission import SubmissionError

EXIT_DETACHED = 130
SAVE_S = 120
"""What a training that is told to end may take for its checkpoint; Ray's own patience is 3 s."""

_REQUEST_TIMEOUT_S = 120
_STOP_S = SAVE_S + 60


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what the job client raises into one message with a cure."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise SubmissionError(
            f"{address} wants the token of its cluster ({str(error).splitlines()[0]}): set RAY_AUTH_MODE=token and"
            " RAY_AUTH_TOKEN_PATH to a file with the token that the cluster was started with"
        ) from None
    except (ConnectionError, requests.ConnectionError, requests.Timeout):
        raise SubmissionError(
            f"nothing answers at {address}. Is the tunnel open? In a terminal of its own: ray dashboard cluster.yaml, or"
            " kubectl port-forward service/vcrd-ray-head-svc 8265:8265"
        ) from None
    except requests.RequestException as error:
        raise SubmissionError(f"{address} answers, but not as a Ray job server: {error}") from None
    except RuntimeError as error:
        raise SubmissionError(f"{address}: {failure_reason(str(error).removesuffix('.'))}") from None


def connect(address: str) -> Any:
    """A client of the server at this address.

    Raises:
        SubmissionError: what answers there is no job server.
    """
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Ray's client, with an end to each request: over a tunnel that hangs it would wait for ever."""

        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, timeout=_REQUEST_TIMEOUT_S, **kwargs)

    # The client lets these two win over the address that it is given.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return Client(address)
    except KeyError:
        raise SubmissionError(f"{address} answers, but not as a Ray job server") from None


def follow_to_its_end(client: Any, job: str, address: str) -> int:
    """Show the log; exit code of the job, or of leaving it behind."""
    from aiohttp import ClientError

    try:
        with explained(address):
            info = asyncio.run(follow_log(client, job, lost=(ClientError, OSError, RuntimeError)))
    except KeyboardInterrupt:
        print(f"\ndetached; {job} goes on", file=sys.stderr)
        say_how_to_go_on(job, address)
        return EXIT_DETACHED
    sys.stdout.flush()
    print(state(info), file=sys.stderr)
    return exit_code(str(info.status), info.driver_exit_code)


def list_jobs(client: Any) -> int:
    """Print all submitted jobs, the newest first; 0."""
    # Drivers that connected by themselves have no submission id.
    jobs = [info for info in client.list_jobs() if info.submission_id]
    for info in sorted(jobs, key=lambda info: -(info.start_time or 0)):
        began = datetime.fromtimestamp((info.start_time or 0) / 1000)
        took_s = ((info.end_time or time.time() * 1000) - (info.start_time or 0)) / 1000
        print(f"{info.submission_id:<36} {info.status!s:<10} {began:%Y-%m-%d %H:%M} {took_s:8.0f} s  {info.entrypoint}")
    return 0


def stop(client: Any, job: str) -> int:
    """Stop a job and wait for its end; 0.

    Raises:
        SubmissionError: it did not end in the time that a checkpoint may take.
    """
    if not client.stop_job(job):
        print(f"had ended before: {state(client.get_job_info(job))}")
        return 0
    until = time.monotonic() + _STOP_S
    while not (info := client.get_job_info(job)).status.is_terminal():
        if time.monotonic() > until:
            raise SubmissionError(f"{job} was asked to stop {_STOP_S} s ago and is still {info.status}; --status {job}")
        time.sleep(0.5)
    print(state(info))
    return 0


def say_how_to_go_on(job: str, address: str) -> None:
    """Print the commands that follow or stop a job that was left running."""
    for action in ("follow", "stop"):
        print(f"  python -m jobs.submit --address {address} --{action} {job}", file=sys.stderr)
