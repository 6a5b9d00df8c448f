"""Scores against values taken by hand, and what they say of intact and of shuffled steps."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_rollouts
from tests.unit.selection.sampled import candidates_of, change_rows, scorer, two_samples
from vcrd_ray.config.select import SelectSection
from vcrd_ray.data.final_answers import final_answer
from vcrd_ray.data.manifest import read_manifest
from vcrd_ray.data.rollouts import read_parts
from vcrd_ray.report.calibration import Reads, auc, auc_interval
from vcrd_ray.selection.candidates import Candidate
from vcrd_ray.selection.scores import (
    aslec_drop,
    lalp,
    naturalness,
    rank_surprisal_ratio,
    score_candidates,
    teacher_step_share,
)
from vcrd_ray.selection.windows import TokenScores

STEPS = [np.array([-4.0, -1.0], np.float32), np.array([-3.0], np.float32), np.array([-6.0, -1.0, -2.0], np.float32)]


def test_lalp_is_a_mean_over_steps_and_not_over_tokens() -> None:
    assert lalp(STEPS).value == pytest.approx((-2.5 - 3.0 - 3.0) / 3)
    assert naturalness(np.concatenate(STEPS)).value == pytest.approx(-17 / 6)


def test_aslec_drop_leaves_out_first_tokens_and_steps_of_one() -> None:
    found = aslec_drop(STEPS)
    assert found is not None and found.value == pytest.approx((-1.0 - 1.5) / 2)
    assert aslec_drop(STEPS[1:2]) is None


def test_rsr_is_clipped_rank_over_surprisal() -> None:
    scores = TokenScores(logp=np.array([-1.0, -3.0], np.float32), rank=np.array([1, 500], np.int32))
    assert rank_surprisal_ratio(scores, rank_clip=100).value == pytest.approx((1 + 100) / (1 + 3))
    certain = TokenScores(logp=np.zeros(2, np.float32), rank=np.ones(2, np.int32))
    assert np.isfinite(rank_surprisal_ratio(certain, rank_clip=100).value)


def test_teacher_steps_are_those_that_the_teacher_finds_likelier_by_the_factor() -> None:
    student = [step - gap for step, gap in zip(STEPS, (0.1, 0.5, 0.9), strict=True)]
    for factor, share in ((1.0, 1.0), (1.25, 2 / 3), (2.0, 1 / 3), (3.0, 0.0)):
        assert teacher_step_share(STEPS, student, factor=factor).value == pytest.approx(share)


def _shuffled(candidate: Candidate, rng: random.Random) -> Candidate:
    """All steps but the answer in another order."""
    *body, _ = candidate.steps
    order = body[:]
    while order == body:
        rng.shuffle(order)
    ids = np.concatenate([candidate.response_ids[step] for step in [*order, candidate.steps[-1]]])
    stops = np.cumsum([step.stop - step.start for step in [*order, candidate.steps[-1]]]).tolist()
    steps = tuple(slice(a, b) for a, b in zip([0, *stops[:-1]], stops, strict=True))
    return replace(candidate, response_ids=ids, steps=steps)


def test_step_scores_rank_intact_above_shuffled_solutions(tmp_path: Path) -> None:
    candidates = candidates_of(write_rollouts(tmp_path / "rollouts", 80))
    rng = random.Random(0)
    mixed = [c if i % 2 else _shuffled(c, rng) for i, c in enumerate(candidates)]
    index = np.arange(len(mixed))
    model = scorer()
    for score in ("lalp", "aslec_drop", "naturalness"):
        found = score_candidates(mixed, SelectSection(score=score), student=model)
        values = np.array([s.value for s in found if s is not None])
        reads = Reads(logit=values, right=index % 2 == 1, response=index, prompt=index)
        low, _ = auc_interval(reads, seed=0)
        assert auc(values, reads.right) > 0.75 and low > 0.6, score


def test_correctness_is_read_without_a_model(tmp_path: Path) -> None:
    candidates = candidates_of(write_rollouts(tmp_path / "rollouts", 4))
    unknown = replace(candidates[0], correct=None)
    found = score_candidates([*candidates, unknown], SelectSection(score="correct"), student=None)
    assert [s and s.value for s in found] == [1.0] * 4 + [None]


@pytest.mark.slow
def test_a_fraction_as_gold_is_not_met_by_its_last_number(tmp_path: Path) -> None:
    directory = two_samples(tmp_path, 4)
    numbers = [c.correct for c in candidates_of(directory)]
    assert numbers == [False, True] * 4
    rows = [row for table in read_parts(directory, read_manifest(directory)) for row in table.to_pylist()]
    answer = final_answer(rows[1]["teacher_text"])
    for gold, right in ((f"1/{answer}", False), (f"2*{answer}/2", True), ("who knows", None)):
        change_rows(directory, {"answer": gold})
        assert candidates_of(directory)[1].correct is right, gold
