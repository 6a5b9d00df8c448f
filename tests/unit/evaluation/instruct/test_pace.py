"""When requests may begin."""

import threading

import pytest

from tests.unit.evaluation.instruct.endpoints import JumpingClock
from vcrd_ray.evaluation.instruct.pace import Pace


def _begins(pace: Pace, clock: JumpingClock, *sizes: int) -> list[float]:
    times = []
    for size in sizes:
        pace.admit(size, threading.Event())
        times.append(clock.now() - 1000)
    return times


def test_without_rates_nothing_waits() -> None:
    clock = JumpingClock()
    pace = Pace(requests_per_minute=None, tokens_per_minute=None, clock=clock)
    assert _begins(pace, clock, 10, 10**9, 10) == [0, 0, 0] and clock.waits == []


def test_the_slower_rate_decides() -> None:
    clock = JumpingClock()
    pace = Pace(requests_per_minute=60, tokens_per_minute=600, clock=clock)
    assert _begins(pace, clock, 5, 40, 5) == pytest.approx([0, 1, 5])


def test_what_a_reply_counts_corrects_what_was_expected() -> None:
    clock = JumpingClock()
    pace = Pace(requests_per_minute=None, tokens_per_minute=60, clock=clock)
    pace.admit(100, threading.Event())
    pace.correct(expected=100, counted=30)
    assert _begins(pace, clock, 1) == pytest.approx([30])


def test_a_pause_holds_every_request() -> None:
    clock = JumpingClock()
    pace = Pace(requests_per_minute=None, tokens_per_minute=None, clock=clock)
    pace.pause(7)
    pace.pause(3)
    assert _begins(pace, clock, 1) == [7]


def test_a_pause_holds_a_request_that_is_waiting_already() -> None:
    class PausedMeanwhile(JumpingClock):
        def wait(self, seconds: float, stop: threading.Event) -> None:
            super().wait(seconds, stop)
            if len(self.waits) == 1:
                pace.pause(50)

    clock = PausedMeanwhile()
    pace = Pace(requests_per_minute=60, tokens_per_minute=None, clock=clock)
    assert _begins(pace, clock, 1, 1) == [0, 51]


def test_a_request_that_is_called_off_waits_no_more() -> None:
    clock = JumpingClock()
    pace = Pace(requests_per_minute=None, tokens_per_minute=None, clock=clock)
    pace.pause(50)
    stop = threading.Event()
    stop.set()
    pace.admit(1, stop)
    assert len(clock.waits) <= 1
