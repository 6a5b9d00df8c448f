"""A job's log, shown without gaps or repetitions over connections that break. Knows neither Ray nor the network."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from jobs.ops.outcome import failure_reason
from jobs.ops.submission import SubmissionError


class LogPosition:
    """How much of a log was shown, for streams that begin at its start each time."""

    def __init__(self) -> None:
        self._shown = 0
        self._at = 0

    def restart(self) -> None:
        """The next text is from the beginning of the log."""
        self._at = 0

    def unseen(self, text: str) -> str:
        """The part of the next piece of the stream that was not shown yet; counts it as shown."""
        new = text[max(0, self._shown - self._at) :]
        self._at += len(text)
        self._shown = max(self._shown, self._at)
        return new


class JobClient(Protocol):
    """What following a job needs of Ray's job client."""

    def tail_job_logs(self, job_id: str) -> AsyncGenerator[str, None]: ...

    def get_job_info(self, job_id: str) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a follower waits."""

    silence_s: float = 300.0
    """A stream that died without a word looks like a silent job, so after this time it is opened again. Not too often:
    on the head each leaves a reader behind until the job ends."""
    give_up_s: float = 900.0
    """Without any contact."""
    first_pause_s: float = 1.0
    max_pause_s: float = 30.0


async def follow_log(
    client: JobClient, job: str, *, lost: tuple[type[Exception], ...], patience: Patience = Patience()
) -> Any:
    """Print a job's log without gaps or repetitions, over as many connections as it takes; its details at the end.

    `lost` are the errors of a connection that may come back.

    Raises:
        SubmissionError: the cluster does not know the job, or did not answer for too long.
    """
    position = LogPosition()
    contact, pause, said = time.monotonic(), patience.first_pause_s, False
    while True:
        position.restart()
        try:
            async with aclosing(client.tail_job_logs(job)) as stream:
                while (text := await _next(stream, patience.silence_s)) is not None:
                    print(position.unseen(text), end="", flush=True)
                    contact, pause, said = time.monotonic(), patience.first_pause_s, False
            info = client.get_job_info(job)
            if info.status.is_terminal():
                return info
            contact, pause, said = time.monotonic(), patience.first_pause_s, False
        except lost as error:
            if "status code 404" in str(error):
                raise SubmissionError(f"{job}: the cluster knows no such job; --list shows those it knows") from None
            if time.monotonic() - contact > patience.give_up_s:
                raise SubmissionError(
                    f"no contact for {patience.give_up_s:g} s ({failure_reason(str(error))}); the job may go on:"
                    f" --follow {job}"
                ) from None
            if not said:
                print(f"connection lost ({failure_reason(str(error))}); trying again", file=sys.stderr, flush=True)
                said = True
            pause = min(2 * pause, patience.max_pause_s)
        await asyncio.sleep(pause)


async def _next(stream: AsyncGenerator[str, None], silence_s: float) -> str | None:
    """The next piece; none at the end of the stream, and where it says nothing for too long."""
    try:
        async with asyncio.timeout(silence_s):
            return await anext(stream, None)
    except TimeoutError:
        return None
