"""The order of operations: the examples of the docstring, and the invariants over random sizes."""

from hypothesis import given
from hypothesis import strategies as st

from vcrd_ray.method.schedule import Action, Op, plan


def short(ops: list[Op]) -> str:
    names = {Action.FORWARD: "F", Action.BACKWARD: "B"}
    shown = [
        f"{names[o.action]}{o.micro}" if o.action in names else "STEP"
        for o in ops
        if o.action != Action.REQUEST_TEACHER
    ]
    return " ".join(shown)


def test_overlapped_window_looks_one_forward_ahead() -> None:
    ops = list(plan(first_update=0, num_updates=1, num_micro=3, overlap=True, prefetch=2))
    assert short(ops) == "F0 F1 B0 F2 B1 B2 STEP"


def test_serial_window_finishes_each_micro_batch_before_the_next() -> None:
    ops = list(plan(first_update=0, num_updates=1, num_micro=3, overlap=False, prefetch=2))
    assert short(ops) == "F0 B0 F1 B1 F2 B2 STEP"


def test_teacher_requests_cross_update_boundaries_when_overlapped() -> None:
    ops = list(plan(first_update=0, num_updates=2, num_micro=1, overlap=True, prefetch=1))
    asked = ops.index(Op(Action.REQUEST_TEACHER, 1, 0))
    assert asked < ops.index(Op(Action.STEP, 0, 0))


@given(
    first=st.integers(0, 3),
    updates=st.integers(0, 4),
    micros=st.integers(1, 5),
    overlap=st.booleans(),
    prefetch=st.integers(1, 7),
)
def test_invariants_hold_for_every_size(first: int, updates: int, micros: int, overlap: bool, prefetch: int) -> None:
    ops = list(
        plan(first_update=first, num_updates=first + updates, num_micro=micros, overlap=overlap, prefetch=prefetch)
    )
    expected = [(u, m) for u in range(first, first + updates) for m in range(micros)]
    for action in (Action.REQUEST_TEACHER, Action.FORWARD, Action.BACKWARD):
        assert [(o.update, o.micro) for o in ops if o.action == action] == expected, "each once and in order"
    assert [o.update for o in ops if o.action == Action.STEP] == list(range(first, first + updates))
    requested = forwarded = backwarded = steps = 0
    for op in ops:
        if op.action == Action.REQUEST_TEACHER:
            requested += 1
            assert requested - forwarded <= (prefetch if overlap else 0) + 1, "requests in flight are bounded"
        elif op.action == Action.FORWARD:
            assert requested > forwarded, "asked before it is waited for"
            assert op.update - first == steps, "no forward past an optimizer update that is still to come"
            forwarded += 1
            assert forwarded - backwarded <= 2, "at most two graphs are alive"
        elif op.action == Action.BACKWARD:
            assert forwarded > backwarded
            backwarded += 1
        else:
            assert forwarded == backwarded == (steps + 1) * micros, "a step sees the whole window"
            steps += 1
