"""Faults of replicas: the client's decisions on a simulated transport, then judges on a real Ray."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.pools.client import PoolClient
from actors.pools.futures import remote_scores
from actors.pools.launch import judge_pool
from actors.pools.pool import Pool
from actors.pools.requests import AnswerLostError, Part, ReplicaDownError, ReplicaGoneError, Request, Tag
from actors.pools.signals import RemoteSignals
from actors.ranks.group import warn_of_quarantined
from tests.actors.conftest import make_config
from tests.conftest import make_pairs
from vcrd_ray.errors import JudgeError, ScheduleError
from vcrd_ray.judges import JudgeProfile
from vcrd_ray.method.schedule import Action, plan
from vcrd_ray.training.signals import Future, done
from vcrd_ray.types import JudgeRequest, JudgeScores, PairBatch, RolloutPair, TeacherRequest


@dataclass(eq=False)
class Sent:
    """A ticket of the simulation."""

    replica: int
    request: Request | None
    """None: a probe."""
    tag: Tag | None = None
    args: Sequence[Any] = ()
    outcome: Any = None
    """None: not settled yet."""


@dataclass(frozen=True)
class SentPart:
    """A reference to a part of an answer."""

    ticket: Sent
    index: int


@dataclass
class Machine:
    """A simulated replica: works on one request at a time, in order of arrival."""

    queue: list[Sent] = field(default_factory=list)
    dead_for: int = 0
    """Ticks until it is back; negative: it never comes back."""


class Simulation:
    """`Transport` in simulated time. A tick of the clock is one step of every replica."""

    def __init__(self, num_replicas: int, *, poison: frozenset[str] = frozenset(), restart: int = 3) -> None:
        self.machines = [Machine() for _ in range(num_replicas)]
        self.poison, self.restart, self.clock = poison, restart, 0
        self.sent: list[tuple[int, str, bool]] = []
        self.running: set[str] = set()
        self.stalled: set[int] = set()
        self.forgotten: list[Sent] = []
        self.chaos: Callable[[], int | None] = lambda: None

    def client(self, *, max_crashes: int | None = 2, joined: bool = True) -> PoolClient:
        """`joined`: it knows already that those are ready that are."""
        client = PoolClient(self, role="judge", num_replicas=len(self.machines), max_crashes=max_crashes)
        if joined:
            self.tick()
            client.is_done(Request(id="none", method="none", args=()))
        return client

    def kill(self, index: int, *, forever: bool = False) -> None:
        machine = self.machines[index]
        machine.dead_for = -1 if forever else self.restart
        for sent in machine.queue:
            sent.outcome = ReplicaGoneError("gone") if forever else ReplicaDownError("down")
        machine.queue.clear()

    def tick(self) -> None:
        self.clock += 1
        victim = self.chaos()
        if victim is not None and not self.machines[victim].dead_for:
            self.kill(victim)
        for index, machine in enumerate(self.machines):
            if machine.dead_for:
                machine.dead_for -= machine.dead_for > 0
            elif machine.queue and index not in self.stalled:
                sent = machine.queue[0]
                if sent.request is None or sent.tag is None:
                    sent.outcome = "ready"
                else:
                    self.running.add(sent.tag.id)
                    if sent.request.id in self.poison:
                        self.kill(index)
                        continue
                    sent.outcome = self.work(sent)
                    self.running.discard(sent.tag.id)
                if sent.outcome is not None:
                    machine.queue.pop(0)

    def work(self, sent: Sent) -> Any:
        """What a request comes to; None: an argument is still being made."""
        made: list[Any] = []
        for arg in sent.args:
            if isinstance(arg, SentPart):
                if arg.ticket.outcome is None:
                    return None
                if isinstance(arg.ticket.outcome, Exception):
                    return AnswerLostError("an argument is lost")
                arg = arg.ticket.outcome[arg.index]
            made.append(arg)
        return ("answer to", *made)

    def send(self, replica: int, request: Request, args: Sequence[Any], tag: Tag) -> Sent:
        self.sent.append((replica, request.id, tag.alone))
        return self._arrive(Sent(replica, request, tag, args))

    def part(self, ticket: Any, index: int) -> SentPart:
        return SentPart(ticket, index)

    def probe(self, replica: int) -> Sent:
        return self._arrive(Sent(replica, None))

    def _arrive(self, sent: Sent) -> Sent:
        machine = self.machines[sent.replica]
        if machine.dead_for:
            sent.outcome = ReplicaGoneError("gone") if machine.dead_for < 0 else ReplicaDownError("down")
        else:
            machine.queue.append(sent)
        return sent

    def wait(self, tickets: Sequence[Any], timeout_s: float) -> list[Any]:
        until = self.clock + timeout_s * 10
        while not (settled := [t for t in tickets if t.outcome is not None]) and self.clock < until:
            self.tick()
        return settled

    def answer(self, ticket: Any) -> Any:
        if isinstance(ticket.outcome, Exception):
            raise ticket.outcome
        return ticket.outcome

    def was_running(self, tag: Tag) -> bool:
        return tag.id in self.running

    def forget(self, ticket: Any) -> None:
        self.forgotten.append(ticket)

    def now(self) -> float:
        return self.clock / 10


def ask(client: PoolClient, *names: str) -> list[Request]:
    return [client.submit(Request(id=name, method="score", args=(name,))) for name in names]


def answers(client: PoolClient, requests: list[Request]) -> list[Any]:
    return [client.result(request, timeout_s=100) for request in requests]


def expected(*names: str) -> list[Any]:
    return [("answer to", name) for name in names]


def test_the_replica_with_the_fewest_unfinished_requests_is_asked_and_equal_ones_in_turn() -> None:
    simulation = Simulation(3)
    client = simulation.client()
    for name in "abcd":
        answers(client, ask(client, name))
    assert [replica for replica, _, _ in simulation.sent] == [0, 1, 2, 0], "all idle"
    simulation.stalled = {1}
    requests = ask(client, *"efg")
    answers(client, [requests[1], requests[2]])
    ask(client, *"hij")
    assert [replica for replica, _, _ in simulation.sent[4:]] == [1, 2, 0, 2, 0, 1], "1 is asked last: it still has e"


def test_requests_of_a_dead_replica_go_to_the_others_at_once_and_in_order() -> None:
    simulation = Simulation(3, restart=1000)
    client = simulation.client()
    requests = ask(client, *"abcdef")
    simulation.kill(0)
    assert answers(client, requests) == expected(*"abcdef")
    assert [name for _, name, _ in simulation.sent[6:]] == ["a", "d"]
    assert {replica for replica, _, _ in simulation.sent[6:]} == {1, 2}, "spread over the living"
    assert [ticket.request.id for ticket in simulation.forgotten if ticket.request] == ["a", "d"]
    assert simulation.clock < 10, "nobody waited for the restart"
    traffic = client.take_traffic()
    assert (traffic.retries, traffic.replica_deaths, traffic.max_in_flight) == (2, 1, 6)


def test_with_one_replica_requests_wait_for_its_restart_and_keep_their_order() -> None:
    simulation = Simulation(1, restart=30)
    client = simulation.client()
    requests = ask(client, *"abc")
    simulation.kill(0)
    late = ask(client, "d")
    assert answers(client, [*requests, *late]) == expected(*"abcd")
    assert [name for _, name, _ in simulation.sent] == ["a", "b", "c", "a", "b", "c", "d"]
    assert simulation.clock >= 30


def test_a_replica_gets_no_request_until_it_has_said_that_it_is_ready() -> None:
    simulation = Simulation(2, restart=10)
    client = simulation.client()
    ask(client, "a")
    simulation.kill(0)
    requests = ask(client, *"bcd")
    assert [replica for replica, _, _ in simulation.sent[1:]] == [1, 1, 1, 1]
    answers(client, requests)
    for _ in range(30):
        simulation.tick()
        client.take_traffic()
    answers(client, ask(client, "e"))
    for _ in range(10):
        simulation.tick()
    requests = ask(client, *"fg")
    assert {replica for replica, _, _ in simulation.sent[-2:]} == {0, 1}
    answers(client, requests)


def test_a_request_that_kills_replicas_is_quarantined_and_all_others_are_answered() -> None:
    for max_crashes in (1, 2, 3):
        simulation = Simulation(2, poison=frozenset("c"))
        client = simulation.client(max_crashes=max_crashes)
        requests = ask(client, *"abcdef")
        assert answers(client, requests) == [*expected("a", "b"), None, *expected("d", "e", "f")]
        assert [r.id for r in requests if r.quarantined] == ["c"]
        assert [name for _, name, _ in simulation.sent].count("c") == max_crashes
        assert client.take_traffic().replica_deaths == max_crashes
        assert client.result(requests[2], timeout_s=1) is None, "every call gives the same"


def test_two_requests_that_kill_are_both_quarantined_with_one_replica() -> None:
    simulation = Simulation(1, poison=frozenset("ad"))
    client = simulation.client()
    requests = ask(client, *"abcde")
    assert answers(client, requests) == [None, *expected("b", "c"), None, *expected("e")]


def test_another_clients_requests_are_not_counted_for_a_replica_that_died_of_ours() -> None:
    simulation = Simulation(1, poison=frozenset(["bad"]))
    ours, theirs = simulation.client(), simulation.client()
    bad = ask(ours, "bad")
    good = ask(theirs, *"xyz")
    assert answers(ours, bad) == [None]
    assert answers(theirs, good) == expected(*"xyz")
    assert max(request.crashes for request in good) == 0


def test_who_was_only_waiting_when_a_replica_died_is_not_counted_for_what_it_did_before() -> None:
    simulation = Simulation(2, poison=frozenset("a"), restart=1000)
    client = simulation.client()
    simulation.stalled = {1}
    requests = ask(client, *"ab")
    simulation.tick()  # replica 0 dies of a, which then waits behind b
    client.submit(Request(id="c", method="score", args=("c",)))
    assert [r.crashes for r in requests] == [1, 0]
    simulation.kill(1)
    ask(client, "d")
    assert [r.crashes for r in requests] == [1, 0]


def test_only_what_was_counted_is_sent_again_alone() -> None:
    simulation = Simulation(1, poison=frozenset("b"))
    client = simulation.client()
    answers(client, ask(client, *"abc"))
    assert [name for _, name, alone in simulation.sent if alone] == ["b"]


def test_a_restarted_client_does_not_take_its_former_lifes_marks_for_its_own() -> None:
    simulation = Simulation(1, poison=frozenset("a"))
    first = simulation.client()
    ask(first, "a")
    simulation.tick()
    assert simulation.running
    simulation.poison = frozenset()
    second = simulation.client(max_crashes=1)
    request = ask(second, "a")
    assert answers(second, request) == expected("a")


def test_an_exception_of_the_judge_surfaces_as_it_is_and_is_not_tried_again() -> None:
    simulation = Simulation(1)
    client = simulation.client()
    (request,) = ask(client, "a")
    simulation.machines[0].queue[0].outcome = ValueError("bad data")
    for _ in range(2):
        with pytest.raises(ValueError, match="bad data"):
            client.result(request, timeout_s=1)
    assert len(simulation.sent) == 1


def test_an_answer_that_is_lost_is_asked_for_again_and_nobody_is_counted() -> None:
    pool = Simulation(2)
    client = pool.client()
    first, second = ask(client, "a", "b")
    first_answer, lost = pool.answer, ["a"]

    def answer(ticket: Any) -> Any:
        if ticket.request is not None and ticket.request.id in lost and isinstance(ticket.outcome, tuple):
            lost.remove(ticket.request.id)
            raise AnswerLostError("its node is gone")
        return first_answer(ticket)

    pool.answer = answer  # type: ignore[method-assign]
    assert answers(client, [first, second]) == expected("a", "b")
    traffic = client.take_traffic()
    assert (traffic.retries, traffic.replica_deaths, first.crashes) == (1, 0, 0)


def test_replicas_that_join_late_are_asked_only_once_they_are_ready() -> None:
    simulation = Simulation(3)
    simulation.machines[2].dead_for = 20
    client = simulation.client()
    answers(client, ask(client, *"abcdef"))
    assert {replica for replica, _, _ in simulation.sent} == {0, 1}, "nobody waits for one that is on its way"
    assert client.take_traffic().replica_deaths == 0
    for _ in range(30):
        simulation.tick()
        client.take_traffic()
    for name in "ghi":
        answers(client, ask(client, name))
    assert 2 in {replica for replica, _, _ in simulation.sent}


def test_requests_wait_where_no_replica_has_joined_yet() -> None:
    simulation = Simulation(1)
    simulation.machines[0].dead_for = 50
    client = simulation.client(joined=False)
    requests = ask(client, *"ab")
    assert simulation.sent == []
    assert answers(client, requests) == expected("a", "b")
    assert simulation.clock >= 50


def test_without_a_bound_on_crashes_a_request_is_sent_again_until_it_is_answered() -> None:
    simulation = Simulation(2, poison=frozenset("a"))
    client = simulation.client(max_crashes=None)
    (request,) = ask(client, "a")
    with pytest.raises(ScheduleError, match="after 10 s"):
        client.result(request, timeout_s=10)
    assert request.sendings > 2 and not request.quarantined
    simulation.poison = frozenset()
    assert answers(client, [request]) == expected("a")


def chain(teachers: PoolClient, judges: PoolClient, name: str) -> Request:
    """A request to judges about what teachers answer."""
    asked = teachers.submit(Request(id=name, method="annotate", args=(name,)))
    part = Part(current=partial(teachers.part, asked, 1))
    return judges.submit(Request(id=f"score {name}", method="score", args=(part,)))


class OneClock(Simulation):
    """A pool whose steps are those of another."""

    def __init__(self, num_replicas: int, other: Simulation, *, restart: int = 3) -> None:
        super().__init__(num_replicas, restart=restart)
        self.other = other

    def tick(self) -> None:
        self.other.tick()
        super().tick()


@pytest.mark.parametrize("num_teachers", [1, 2])
def test_who_waits_for_the_answer_of_a_dead_replica_of_another_pool_is_sent_again_with_the_new_one(
    num_teachers: int,
) -> None:
    teaching = Simulation(num_teachers, restart=25)
    judging = OneClock(1, teaching)
    teachers, judges = teaching.client(max_crashes=None), judging.client()
    requests = [chain(teachers, judges, name) for name in "abc"]
    teaching.kill(0)
    assert answers(judges, requests) == expected(*"abc")
    assert [request.crashes for request in requests] == [0, 0, 0] and judges.take_traffic().replica_deaths == 0
    assert [name for _, name, _ in teaching.sent].count("a") == 2


def test_a_request_whose_argument_failed_on_purpose_fails_with_the_same_error() -> None:
    teaching = Simulation(1)
    judging = OneClock(1, teaching)
    teachers, judges = teaching.client(), judging.client()
    asked = teachers.submit(Request(id="a", method="annotate", args=("a",)))
    teaching.machines[0].queue[0].outcome = ValueError("bad data")
    part = Part(current=partial(teachers.part, asked, 1))
    with pytest.raises(ValueError, match="bad data"):
        judges.result(judges.submit(Request(id="b", method="score", args=(part,))), timeout_s=1)
    assert judging.sent == []


def test_too_many_requests_that_kill_end_the_run(pairs: list[RolloutPair]) -> None:
    batch = PairBatch(update=0, micro=0, pairs=(pairs[0],))
    pool = Simulation(1, poison=frozenset({"a", "b"}))
    client = pool.client()
    pending = [
        remote_scores(client, request, batch=done(batch), side="teacher", timeout_s=1000, max_quarantined=1)
        for request in ask(client, "a", "b")
    ]
    assert pending[0].result().quarantined and len(pending[0].result().trunk_logit) == batch.layout.num_teacher_tokens
    with pytest.raises(JudgeError, match=r"died of 2 requests, more than judge.max_set_aside 1, the last b"):
        pending[1].result()


def test_a_pool_that_is_gone_for_good_says_so_and_one_that_is_left_answers() -> None:
    simulation = Simulation(2)
    client = simulation.client()
    requests = ask(client, *"abcd")
    simulation.kill(0, forever=True)
    assert answers(client, requests) == expected(*"abcd")
    requests = ask(client, "e")
    simulation.kill(1, forever=True)
    for _ in range(2):
        with pytest.raises(ScheduleError, match="the judge pool is gone for good"):
            answers(client, requests)


def test_no_answer_in_time_names_the_request_and_the_setting() -> None:
    simulation = Simulation(1, restart=10_000)
    client = simulation.client()
    (request,) = ask(client, "update 3")
    simulation.kill(0)
    with pytest.raises(ScheduleError, match=r"after 2 s \(request update 3\).*cluster\.request_timeout_s"):
        client.result(request, timeout_s=2)


@pytest.mark.parametrize("seed", range(20))
def test_random_deaths_never_change_an_answer(seed: int) -> None:
    draw = random.Random(seed)
    simulation = Simulation(draw.randint(1, 4), restart=draw.randint(1, 20))
    simulation.chaos = lambda: draw.randrange(len(simulation.machines)) if draw.random() < 0.3 else None
    client = simulation.client(max_crashes=1000)
    waiting: list[Request] = []
    for i in range(60):
        waiting += ask(client, str(i))
        if draw.random() < 0.6:
            request = waiting.pop(draw.randrange(len(waiting)))
            assert answers(client, [request]) == expected(request.id)
    assert answers(client, waiting) == expected(*(request.id for request in waiting))
    assert client.in_flight == 0 and client.take_traffic().replica_deaths > 0


@pytest.mark.parametrize(("overlap", "prefetch", "bound"), [(True, 2, 6), (True, 5, 9), (False, 5, 2)])
def test_the_plan_bounds_the_requests_in_flight(overlap: bool, prefetch: int, bound: int) -> None:
    """prefetch + 2 on student prefixes and 2 on teacher prefixes: what is asked ahead, and two open micro-batches."""
    client = Simulation(2).client()
    asked: dict[tuple[int, int], list[Request]] = {}
    for op in plan(first_update=0, num_updates=5, num_micro=4, overlap=overlap, prefetch=prefetch):
        key = (op.update, op.micro)
        match op.action:
            case Action.REQUEST_TEACHER:
                asked[key] = ask(client, f"{key} student")
            case Action.FORWARD:
                asked[key] += ask(client, f"{key} teacher")
            case Action.BACKWARD:
                answers(client, asked.pop(key))
    assert client.take_traffic().max_in_flight == bound


def test_a_run_ends_with_a_warning_of_what_was_quarantined_before_and_after_a_resume(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"update": 0, "judge/set_aside_rows": 0.0}\n{"update": 1}\n', encoding="utf-8")
    warn_of_quarantined(tmp_path)
    assert caplog.text == ""
    with file.open("a", encoding="utf-8") as lines:
        lines.write('{"update": 2, "judge/set_aside_rows": 5.0}\n{"update": 3, "judge/set_aside_rows": 2.0}\n')
    warn_of_quarantined(tmp_path)
    assert "7 tokens were not judged" in caplog.text


class MortalJudge:
    """Answers at once; the process dies of questions in `deadly`."""

    profile = JudgeProfile(fingerprint="mortal", family="test", scores="token", reads="", trained_on="")

    def __init__(self, deadly: frozenset[str]) -> None:
        self._deadly = deadly

    def score(self, request: JudgeRequest) -> JudgeScores:
        if self._deadly.intersection(request.questions):
            os._exit(1)
        logit = np.concatenate(request.responses).astype(np.float32)
        return JudgeScores(trunk_logit=logit, branch_logit=-logit, num_tokens=len(logit), seconds=0.0)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("section", [{"replicas": 2}, {"replicas": 1, "merge_requests": 4}], ids=["single", "merged"])
def test_on_ray_a_request_that_kills_its_judge_is_quarantined_and_all_others_are_answered(
    local_ray: None, tmp_path: Path, section: dict[str, int]
) -> None:
    pairs = make_pairs(8)
    deadly = frozenset([pairs[3].question])
    config = make_config(tmp_path, tmp_path, judge={"type": "value_head", **section})
    pool = judge_pool(config, load=lambda: MortalJudge(deadly))  # type: ignore[arg-type, return-value]
    assert pool is not None
    pool.wait_ready(60)
    try:
        check_quarantined(pool, pairs)
    finally:
        pool.stop()
    started = time.monotonic()
    with pytest.raises(ScheduleError, match="the judge pool is gone for good"):
        ask_on_ray(signals_of(pool, rank=0), pairs[0], micro=0).result()
    assert time.monotonic() - started < 20


def signals_of(pool: Pool, *, rank: int) -> RemoteSignals:
    request = TeacherRequest(transport="hidden", top_k=1, propose=True, seed=0)
    return RemoteSignals(
        teacher=None, judge=pool, request=request, timeout_s=60, rank=rank, max_crashes=2, max_quarantined=10
    )


def ask_on_ray(signals: RemoteSignals, pair: RolloutPair, *, micro: int) -> Future[JudgeScores]:
    batch = PairBatch(update=0, micro=micro, pairs=(pair,))
    return signals.request_teacher_prefix_scores(batch, pair.teacher_ids)


def check_quarantined(pool: Pool, pairs: list[RolloutPair]) -> None:
    """Two ranks ask for everything; rank 1 does not ask the question that kills, and none of its requests may be lost."""
    ranks = [signals_of(pool, rank=rank) for rank in range(2)]
    asked = [(rank, micro) for micro in range(len(pairs)) for rank in range(2) if (rank, micro) != (1, 3)]
    pending = [ask_on_ray(ranks[rank], pairs[micro], micro=micro) for rank, micro in asked]
    found = [scores.result() for scores in pending]
    assert [key for key, scores in zip(asked, found, strict=True) if scores.quarantined] == [(0, 3)]
    for (_, micro), scores in zip(asked, found, strict=True):
        wanted = pairs[micro].teacher_ids.astype(np.float32)
        np.testing.assert_array_equal(scores.trunk_logit, wanted * np.nan if scores.quarantined else wanted)
    assert ranks[0].take_judge_traffic().replica_deaths >= 2
