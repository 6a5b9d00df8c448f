"""How pools and ranks tell each other of their start, and when ranks save because they must. No Ray is started."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray.train
import torch

from actors.pools import startup
from actors.pools.pool import Pool
from actors.pools.startup import await_pools, pools_beside
from actors.ranks import stopping
from actors.ranks.notes import ControlNotes
from actors.ranks.stopping import EarlyStop
from vcrd_ray.errors import ScheduleError, StoppedError
from vcrd_ray.models.backend import Backend


class Board:
    """ControlNotes in this process."""

    def __init__(self, **left: Any) -> None:
        self._left = left

    def leave(self, name: str, value: Any) -> None:
        self._left[name] = value

    def read(self, name: str) -> Any:
        return self._left.get(name)


class StandIn:
    """A pool whose start ends when a test says."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.may_go_on, self.stopped = error, threading.Event(), False

    def wait_ready(self, timeout_s: float) -> None:
        self.may_go_on.wait(timeout_s)
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        self.stopped = True
        self.may_go_on.set()


@pytest.fixture(autouse=True)
def named_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "judge_fingerprint", lambda pool: "the judge's name")


def notes_of(board: Board) -> ControlNotes:
    return cast(ControlNotes, board)


def test_ranks_go_on_when_the_last_pool_is_ready_and_know_the_judge() -> None:
    board, first, judge = Board(), StandIn(), StandIn()
    with pools_beside(cast(list[Pool], [first, judge]), cast(Pool, judge), notes_of(board), timeout_s=60):
        first.may_go_on.set()
        assert board.read("pools") is None and not judge.stopped
        judge.may_go_on.set()
        assert await_pools(notes_of(board)) == "the judge's name"
    assert first.stopped and judge.stopped and board.read("pools") is not None


def test_without_pools_nobody_waits() -> None:
    board = Board()
    with pools_beside([], None, notes_of(board), timeout_s=60):
        assert await_pools(notes_of(board)) is None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ScheduleError("the judge pool was not ready"), "the judge pool was not ready"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_why_a_pool_is_not_there_arrives_at_the_ranks(error: Exception, said: str) -> None:
    board, pool = Board(), StandIn(error)
    pool.may_go_on.set()
    with (
        pools_beside(cast(list[Pool], [pool]), None, notes_of(board), timeout_s=60),
        pytest.raises(ScheduleError) as raised,
    ):
        await_pools(notes_of(board))
    assert str(raised.value) == said


def test_a_group_that_fails_does_not_wait_for_pools_that_are_still_loading() -> None:
    pool = StandIn()
    with (
        pytest.raises(ZeroDivisionError),
        pools_beside(cast(list[Pool], [pool]), None, notes_of(Board()), timeout_s=600),
    ):
        raise ZeroDivisionError
    assert pool.stopped


def test_a_run_that_is_told_to_end_does_not_wait_for_its_pools() -> None:
    with pytest.raises(StoppedError, match="before its pools were ready"):
        await_pools(notes_of(Board(stop=True)))


class Clock:
    """Seconds that pass when a test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(stopping.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(stopping.time, "time", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def early_stop(board: Board, *, must_save_by: float | None = None) -> EarlyStop:
    """One rank of one."""
    alone = SimpleNamespace(
        rank=0, student=SimpleNamespace(device=torch.device("cpu")), sum_over_ranks=lambda tensor: tensor
    )
    return EarlyStop(cast(Backend, alone), notes_of(board), must_save_by=must_save_by)


def test_while_a_node_leaves_saving_takes_a_tenth_of_the_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    leaving: list[object] = []
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: leaving[0] if leaving else None)
    early, saved_at = early_stop(Board()), []
    for second in range(1, 61):
        clock.now += 1
        if second == 10:
            leaving.append(object())
        saves = early.must_save()
        if saves:
            saved_at.append(second)
            clock.now += 1.5
        early.done(saved_s=1.5 if saves else 0.0)
    assert saved_at == [10, 25, 40, 55]


def test_a_run_told_to_end_saves_and_stops(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    board = Board()
    early = early_stop(board)
    assert not early.must_save()
    early.done(saved_s=0.0)
    board.leave("stop", True)
    assert early.must_save()
    with pytest.raises(StoppedError, match=r"SIGTERM.*everything is saved"):
        early.done(saved_s=1.0)


def test_the_deadline_leaves_time_for_an_update_and_two_checkpoints(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    early = early_stop(Board(), must_save_by=1100.0)
    clock.now += 7
    assert not early.must_save()
    clock.now += 4
    early.done(saved_s=4.0)
    # 7 s for an update, 2 x 4 s for checkpoints, 5 s to spare.
    clock.now = 1079.9
    early._last = clock.now - 1
    assert not early.must_save()
    early.done(saved_s=0.0)
    clock.now = 1080.1
    assert early.must_save()
    with pytest.raises(StoppedError, match="must_save_by"):
        early.done(saved_s=4.0)
