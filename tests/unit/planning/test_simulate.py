"""The simulated schedule against schedules worked out by hand, and against bounds that no schedule can leave."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcrd_ray.config import Config
from vcrd_ray.method.schedule import Action, plan
from vcrd_ray.planning.host import answers_in_flight
from vcrd_ray.planning.simulate import ServiceTimes, Simulated, Sizes, simulate

TIMES = ServiceTimes(forward_s=1, loss_s=1, backward_s=2, step_s=1, teacher_s=3, judge_teacher_s=2, judge_student_s=2)
ONE = Sizes(ranks=1, num_micro=1, teachers=1, judges=1, overlap=False, prefetch=1)


def test_a_serial_update_is_what_it_is_by_hand() -> None:
    # Forward to 1, teacher to 3, loss to 4; the judge scores student responses 3..5 and teacher responses 5..7;
    # backward to 9, step to 10.
    found = simulate(TIMES, ONE, num_updates=1)
    assert found == Simulated(
        total_s=10,
        update_s=10,
        wait_teacher_s=2,
        wait_judge_s=3,
        teacher_busy=pytest.approx(0.3),
        judge_busy=pytest.approx(0.4),
    )


def test_an_overlapped_update_is_what_it_is_by_hand() -> None:
    # Both teacher requests at 0: answers at 3 and 6. F0 to 1, waits to 3, loss to 4, judge of 0: 3..5 and 5..7.
    # F1 to 5, waits to 6, loss to 7, judge of 1: student side 7..9 (the judge is free at 7), teacher side 9..11.
    # B0 to 9, B1 waits from 9 to 11, to 13, step to 14.
    found = simulate(TIMES, dataclasses.replace(ONE, num_micro=2, overlap=True), num_updates=1)
    assert (found.total_s, found.wait_teacher_s, found.wait_judge_s) == (14, 3, 2)


def test_two_ranks_share_one_teacher_and_meet_at_the_step() -> None:
    times = ServiceTimes(
        forward_s=1, loss_s=0, backward_s=1, step_s=0, teacher_s=4, judge_teacher_s=0, judge_student_s=0
    )
    # Answers at 4 and 8: waits of 3 and 7, and the first rank stands at the step until 9.
    found = simulate(times, dataclasses.replace(ONE, ranks=2), num_updates=1)
    assert (found.total_s, found.wait_teacher_s) == (9, 5)
    # With a teacher each: ranks ask theirs in turn, both begin with the first, as the pool does.
    again = simulate(times, dataclasses.replace(ONE, ranks=2, teachers=2), num_updates=1)
    assert again.total_s == 9


def test_without_teacher_and_judge_nobody_waits() -> None:
    times = dataclasses.replace(TIMES, teacher_s=0, judge_teacher_s=0, judge_student_s=0)
    found = simulate(times, dataclasses.replace(ONE, num_micro=3, overlap=True), num_updates=4)
    assert (found.wait_teacher_s, found.wait_judge_s, found.update_s) == (0, 0, 3 * 4 + 1)


@given(
    services=st.tuples(*[st.floats(0.01, 3)] * 6),
    micros=st.integers(1, 4),
    overlap=st.booleans(),
    prefetch=st.integers(1, 4),
    ranks=st.integers(1, 3),
    teachers=st.integers(1, 3),
    judges=st.integers(1, 3),
)
def test_no_run_leaves_the_trivial_bounds(
    services: tuple[float, ...], micros: int, overlap: bool, prefetch: int, ranks: int, teachers: int, judges: int
) -> None:
    forward, loss, backward, teacher, of_teacher, of_student = services
    times = ServiceTimes(
        forward_s=forward,
        loss_s=loss,
        backward_s=backward,
        step_s=0.5,
        teacher_s=teacher,
        judge_teacher_s=of_teacher,
        judge_student_s=of_student,
    )
    sizes = Sizes(ranks=ranks, num_micro=micros, teachers=teachers, judges=judges, overlap=overlap, prefetch=prefetch)
    found = simulate(times, sizes, num_updates=3)
    student = 3 * (micros * (forward + loss + backward) + 0.5)
    asked = 3 * micros * ranks
    at_least = max(student, asked * teacher / teachers, asked * (of_teacher + of_student) / judges)
    at_most = student + asked * (teacher + of_teacher + of_student)
    assert at_least * (1 - 1e-9) <= found.total_s <= at_most * (1 + 1e-9)
    if ranks == 1:
        waited = 3 * (found.wait_teacher_s + found.wait_judge_s)
        assert found.total_s == pytest.approx(student + waited), "a rank works or waits"


@given(overlap=st.booleans(), prefetch=st.integers(1, 6))
def test_no_more_answers_are_alive_than_the_object_store_is_sized_for(overlap: bool, prefetch: int) -> None:
    alive = most = 0
    for op in plan(first_update=0, num_updates=4, num_micro=4, overlap=overlap, prefetch=prefetch):
        alive += (op.action is Action.REQUEST_TEACHER) - (op.action is Action.BACKWARD)
        most = max(most, alive)
    config = Config.model_validate({"distill": {"overlap": overlap, "prefetch": prefetch}})
    assert most == answers_in_flight(config)


def test_variation_makes_waits_that_means_hide_and_the_seed_repeats_them() -> None:
    even = ServiceTimes(
        forward_s=1, loss_s=1, backward_s=1, step_s=0, teacher_s=2.9, judge_teacher_s=0, judge_student_s=0
    )
    sizes = dataclasses.replace(ONE, num_micro=4, overlap=True, prefetch=2)
    runs = [simulate(even, sizes, num_updates=50, warm_up=10, variation=v, seed=3) for v in (0.0, 0.5, 0.5)]
    assert runs[0].wait_teacher_s < runs[1].wait_teacher_s
    assert runs[1] == runs[2]


def test_a_warm_up_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves none of 3"):
        simulate(TIMES, ONE, num_updates=3, warm_up=3)
