"""Sums of an update and the decisions that are kept."""

import numpy as np
import pytest

from vcrd_ray.method.weighting import Weights, ratio_weights
from vcrd_ray.training.telemetry import Telemetry, pick_decisions
from vcrd_ray.types import PairBatch, RolloutPair, ScoredProposals


def case(
    seed: int, pairs: int = 3, micro: int = 0
) -> tuple[PairBatch, Weights, ScoredProposals, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return rng.integers(1, 5, rng.integers(2, 9)).astype(np.int32)

    made = [
        RolloutPair(id=f"{seed}-{i}", question="q", prompt_ids=ids(), teacher_ids=ids(), student_ids=ids())
        for i in range(pairs)
    ]
    batch = PairBatch(update=2, micro=micro, pairs=tuple(made))
    n = batch.layout.num_tokens
    proposals = rng.integers(1, 5, (2, n)).astype(np.int32)
    logits = rng.normal(size=(2, n)).astype(np.float32) * 4
    scored = ScoredProposals(
        teacher_proposal=proposals[0], student_proposal=proposals[1], teacher_logit=logits[0], student_logit=logits[1]
    )
    weights = ratio_weights(scored, special_ids=set(), eps=1e-8, w_max=10)
    return batch, weights, scored, rng.random(n).astype(np.float32), np.full(n, 0.1, np.float32)


def add(telemetry: Telemetry, *what: int) -> Telemetry:
    for seed in what:
        batch, weights, scored, divergence, coefficient = case(seed)
        telemetry.add(batch, weights, scored, divergence=divergence, coefficient=coefficient)
    return telemetry


def test_micro_batches_and_ranks_add_up() -> None:
    one = add(Telemetry(), 1, 2, 3).to_vector()
    parts = add(Telemetry(), 1).to_vector() + add(Telemetry(), 2, 3).to_vector()
    np.testing.assert_allclose(one, parts, rtol=1e-12)


def test_shares_follow_their_conventions() -> None:
    batch, weights, scored, divergence, coefficient = case(5)
    telemetry = Telemetry()
    telemetry.add(batch, weights, scored, divergence=divergence, coefficient=coefficient)
    figures = Telemetry.metrics(telemetry.to_vector(), world_size=1)
    differ = scored.teacher_proposal != scored.student_proposal
    assert figures["proposals/agreement"] == pytest.approx(1 - differ.mean())
    assert figures["weights/share_above_one_judged"] == pytest.approx((weights.weight[differ] > 1).mean())
    assert figures["weights/share_at_least_one_all"] == pytest.approx((weights.weight >= 1).mean())
    assert figures["loss"] == pytest.approx(float((coefficient * weights.weight * divergence).sum()), rel=1e-5)
    at_most = (weights.weight[differ] <= figures["weights/p50"] * 1.06).mean()
    below = (weights.weight[differ] < figures["weights/p50"] / 1.06).mean()
    assert below <= 0.5 <= at_most


def test_nothing_judged_gives_no_shares_and_no_decisions() -> None:
    batch, _, scored, divergence, coefficient = case(5)
    same = ScoredProposals(
        teacher_proposal=scored.teacher_proposal,
        student_proposal=scored.teacher_proposal,
        teacher_logit=scored.teacher_logit,
        student_logit=scored.student_logit,
    )
    weights = ratio_weights(same, special_ids=set(), eps=1e-8, w_max=10)
    telemetry = Telemetry()
    telemetry.add(batch, weights, same, divergence=divergence, coefficient=coefficient)
    figures = Telemetry.metrics(telemetry.to_vector(), world_size=1)
    assert "weights/share_above_one_judged" not in figures and figures["weights/mean"] == 1
    assert pick_decisions(batch, weights, same, divergence, count=4, seed=0) == []


def test_decisions_hold_a_sample_and_the_extremes() -> None:
    batch, weights, scored, divergence, _ = case(9, pairs=12)
    kept = pick_decisions(batch, weights, scored, divergence, count=5, seed=0)
    judged = weights.weight[weights.judged]
    assert sum(d.sampled for d in kept) == 5
    assert {d.weight for d in kept} >= {float(judged.min()), float(judged.max())}
    assert len({(d.pair, d.side, d.position) for d in kept}) == len(kept)
    assert kept == pick_decisions(batch, weights, scored, divergence, count=5, seed=0)


def test_the_sample_is_uniform_over_judged_rows() -> None:
    counts: dict[tuple[str, str, int], int] = {}
    for seed in range(400):
        batch, weights, scored, divergence, _ = case(9)
        for d in pick_decisions(batch, weights, scored, divergence, count=3, seed=seed):
            if d.sampled:
                key = (d.pair, d.side, d.position)
                counts[key] = counts.get(key, 0) + 1
    expected = 1200 / int(weights.judged.sum())
    assert len(counts) == int(weights.judged.sum())
    assert max(counts.values()) < expected + 5 * expected**0.5 and min(counts.values()) > expected - 5 * expected**0.5
