"""When a request may be sent. Knows nothing of requests but their sizes."""

from __future__ import annotations

import threading
import time
from typing import Protocol

_SECONDS = 60.0


class Clock(Protocol):
    """Time, and waiting in it."""

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        ...

    def wait(self, seconds: float, stop: threading.Event) -> None:
        """Until the time is over or `stop` is set."""
        ...


class WallClock(Clock):
    """This machine's `Clock`."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float, stop: threading.Event) -> None:
        stop.wait(seconds)


class Pace:
    """Spaces requests evenly below two rates, for all threads that share it.

    Invariant: requests begin at least 1/rate apart, and each begins only when the tokens of those before it have been paid
    for in time. No burst at the start: an endpoint that counts in windows of a second is never surprised.
    """

    def __init__(self, *, requests_per_minute: float | None, tokens_per_minute: float | None, clock: Clock) -> None:
        self._per_request_s = 0.0 if requests_per_minute is None else _SECONDS / requests_per_minute
        self._per_token_s = 0.0 if tokens_per_minute is None else _SECONDS / tokens_per_minute
        self._clock = clock
        self._turn = threading.Lock()
        self._next_request = self._next_tokens = self._paused_until = clock.now()

    def admit(self, tokens: int, stop: threading.Event) -> None:
        """Wait for this request's turn, or until `stop` is set."""
        with self._turn:
            now = self._clock.now()
            begin = max(now, self._next_request, self._next_tokens, self._paused_until)
            self._next_request = begin + self._per_request_s
            self._next_tokens = begin + tokens * self._per_token_s
        if begin > now:
            self._clock.wait(begin - now, stop)
        # The endpoint may have asked for a pause meanwhile.
        while not stop.is_set() and (left := self._pause_left()) > 0:
            self._clock.wait(left, stop)

    def correct(self, *, expected: int, counted: int) -> None:
        """A reply says how many tokens the request took."""
        with self._turn:
            self._next_tokens += (counted - expected) * self._per_token_s

    def pause(self, seconds: float) -> None:
        """No request begins for so long."""
        with self._turn:
            self._paused_until = max(self._paused_until, self._clock.now() + seconds)

    def _pause_left(self) -> float:
        with self._turn:
            return self._paused_until - self._clock.now()
