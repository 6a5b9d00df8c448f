"""Curricula by hand, and their states through JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from vcrd_ray.method.curricula import MixingState, TaidState, adaptive_alpha, gradual_factors
from vcrd_ray.method.objective_state import ObjectiveState, sequence_advantage

TAID = {"start": 0.4, "end": 1.0, "rate": 5e-4, "momentum": 0.99}


def test_taid_follows_its_formula_for_three_updates() -> None:
    state, t, change, previous = TaidState(t=0.4), 0.4, 0.0, math.nan
    for update, loss in enumerate((2.0, 1.5, 1.8), 1):
        # Beyond the linear schedule: an early stage of a long run.
        state = state.after(loss, progress=update / 1000, **TAID)
        fall = 0.0 if update == 1 else (previous - loss) / (previous + 1e-15)
        change = 0.99 * change + 0.01 * fall
        t = min(1.0, max(0.4 + 0.6 * update / 1000, t + 5e-4 / (1 + math.exp(-change)) * (1 - t)))
        previous = loss
        assert state.t == pytest.approx(t, abs=1e-15) and state.change == pytest.approx(change, abs=1e-15)


def test_taid_never_falls_and_ends_at_its_end() -> None:
    state, seen = TaidState(t=0.4), []
    for update in range(1, 101):
        state = state.after(1 / update, progress=update / 100, **{**TAID, "end": 0.9})
        seen.append(state.t)
    assert seen == sorted(seen) and seen[-1] == pytest.approx(0.9)


def test_gradual_factors_grow_to_the_middle_of_the_run() -> None:
    found = [gradual_factors(progress=p) for p in (0, 0.25, 0.5, 1)]
    assert found == [(1, 1), (0.75, 1.25), (0.5, 1.5), (0.5, 1.5)]


@pytest.mark.parametrize(("difference", "alpha"), [(0.25, 0.01), (0.50, 0.1), (0.28, 0.03574872325988365), (-0.2, 0.1)])
def test_adaptive_alpha_equals_the_golden_one(difference: float, alpha: float) -> None:
    found = adaptive_alpha(torch.tensor([difference], dtype=torch.float64), anchor=0.3, base=0.1)
    assert found.item() == pytest.approx(alpha, abs=1e-12)


def test_adaptive_alpha_never_rises_above_a_base_below_its_floor() -> None:
    for difference in (0.25, 0.5):
        assert adaptive_alpha(torch.tensor([difference]), anchor=0.3, base=0.004).item() == pytest.approx(0.004)


def test_the_mixing_threshold_rises_only_when_the_validation_loss_has_risen() -> None:
    state = MixingState(threshold=0.0)
    path = []
    for loss in (1.0, 0.9, 1.05, 1.125, 1.2, 1.25):
        state = state.after(loss, step=0.4, tolerance=0.125)
        path.append((round(state.threshold, 6), state.reference))
    assert path == [(0, 1.0), (0, 1.0), (0, 1.0), (0.4, 1.125), (0.4, 1.125), (0.8, 1.25)]
    for _ in range(3):
        state = state.after(state.reference + 1, step=0.4, tolerance=0.1)
    assert state.threshold == 1.0


def test_states_survive_json() -> None:
    state = ObjectiveState(
        taid=TaidState(t=0.5, change=0.1, previous_loss=1.5), mixing=MixingState(threshold=0.2), anchors=(0.3, -0.1)
    )
    back = ObjectiveState.from_record(json.loads(json.dumps(state.to_record())))
    assert back.taid == state.taid and back.anchors == state.anchors
    assert back.mixing is not None and back.mixing.threshold == 0.2 and math.isnan(back.mixing.reference)
    assert ObjectiveState.from_record({}) == ObjectiveState()


def test_an_owner_s_advantage_is_taken_of_whole_sequences() -> None:
    owner, other = np.log(np.array([0.5, 0.125, 0.9])), np.log(np.array([0.25, 0.04, 0.4]))
    found = sequence_advantage(owner.astype(np.float32), other.astype(np.float32), np.array([2, 0, 1]))
    assert found.tolist() == pytest.approx([0.25 - 0.1, 0.9 - 0.4], abs=1e-6)
