"""What a judge's scores are worth, against figures made by hand or by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import STUDENT, make_pairs
from vcrd_ray.judges import JudgeProfile
from vcrd_ray.judges.calibrated import POSITION_CLASSES, CalibratedJudge, PositionClass, StepPositions, TemperatureMap
from vcrd_ray.judges.oracle import OracleJudge
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.report.calibration import (
    Reads,
    agreement,
    auc,
    auc_interval,
    calibrate,
    fit_isotonic,
    fit_temperature,
    fitting_prompts,
    quality,
    reliability_bins,
)
from vcrd_ray.report.calibration_figures import CalibrationReport, ClassFigures, extrapolation, verdict
from vcrd_ray.types import JudgeRequest

PROFILE = JudgeProfile(fingerprint="j", family="value_head", scores="token", reads="there", trained_on="every token")


def make_reads(logit: np.ndarray, right: np.ndarray, response: np.ndarray | None = None) -> Reads:
    response = np.arange(len(logit)) if response is None else response
    return Reads(logit=np.asarray(logit, float), right=np.asarray(right, bool), response=response, prompt=response)


def logits_of(scores: list[float]) -> np.ndarray:
    score = np.asarray(scores)
    return np.log(score) - np.log1p(-score)


tied_logits = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30)


@given(tied_logits)
def test_auc_is_the_share_of_pairs_in_order_with_ties_half(reads: list[tuple[int, bool]]) -> None:
    logit, right = np.array([r[0] for r in reads], float), np.array([r[1] for r in reads])
    pairs = [(g > b) + (g == b) / 2 for g, b in itertools.product(logit[right], logit[~right])]
    found = auc(logit, right)
    assert math.isnan(found) if not pairs else found == pytest.approx(np.mean(pairs))


@given(tied_logits, st.data())
def test_a_weight_counts_as_copies(reads: list[tuple[int, bool]], data: st.DataObject) -> None:
    logit, right = np.array([r[0] for r in reads], float), np.array([r[1] for r in reads])
    copies = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(reads), max_size=len(reads))))
    weighted = auc(logit, right, copies.astype(float))
    assert weighted == pytest.approx(auc(np.repeat(logit, copies), np.repeat(right, copies)), nan_ok=True)


def test_the_interval_resamples_responses_not_tokens() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(60) < 0.5
    logit = rng.normal(size=60) + right
    once = auc_interval(make_reads(logit, right), seed=1)
    # The same reads forty times over are no more evidence.
    copied = make_reads(np.repeat(logit, 40), np.repeat(right, 40), np.repeat(np.arange(60), 40))
    assert auc_interval(copied, seed=1) == pytest.approx(once)
    as_if_independent = auc_interval(make_reads(copied.logit, copied.right), seed=1)
    assert as_if_independent[1] - as_if_independent[0] < (once[1] - once[0]) / 3
    assert once[0] < auc(logit, right) < once[1]


def test_calibration_error_brier_and_log_loss_by_hand() -> None:
    # Bin 0.9: scores .92 and .98, one of two right: gap .45. Bin 0.2: .25, wrong: gap .25. Bin 0.2 has one read.
    logit, right = logits_of([0.92, 0.98, 0.25]), np.array([True, False, False])
    found = quality(logit, right)
    assert found.ece == pytest.approx((2 * 0.45 + 1 * 0.25) / 3)
    assert found.brier == pytest.approx((0.08**2 + 0.98**2 + 0.25**2) / 3)
    assert found.log_loss == pytest.approx(-(math.log(0.92) + math.log(0.02) + math.log(0.75)) / 3)
    bins = reliability_bins(logit, right)
    assert [b.count for b in bins] == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert bins[9].mean_score == pytest.approx(0.95) and bins[9].share_right == 0.5 and bins[0].mean_score is None


def test_a_score_of_one_is_in_the_last_bin_and_its_loss_is_finite() -> None:
    logit = np.array([800.0, -800.0])
    assert [b.count for b in reliability_bins(logit, np.array([True, False]))] == [1, *[0] * 8, 1]
    assert quality(logit, np.array([True, False])).log_loss == 0
    assert quality(logit, np.array([False, True])).log_loss == 800


def pooled(values: list[float], weights: list[float]) -> tuple[list[float], list[int]]:
    """Adjacent violators pooled one pair at a time: value and number of members of each block."""
    blocks = [([v], [w]) for v, w in zip(values, weights, strict=True)]

    def mean(block: tuple[list[float], list[float]]) -> float:
        return float(np.average(block[0], weights=block[1]))

    while True:
        at = next((i for i in range(len(blocks) - 1) if mean(blocks[i]) >= mean(blocks[i + 1])), None)
        if at is None:
            return [mean(b) for b in blocks], [len(b[0]) for b in blocks]
        joined = (blocks[at][0] + blocks[at + 1][0], blocks[at][1] + blocks[at + 1][1])
        blocks[at : at + 2] = [joined]


@given(st.lists(st.tuples(st.integers(-6, 6), st.booleans(), st.integers(0, 4)), min_size=1, max_size=40))
@settings(deadline=None)
def test_isotonic_map_is_pool_adjacent_violators(rows: list[tuple[int, bool, int]]) -> None:
    logit, right = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    response = np.array([r[2] + 10 * r[1] for r in rows])
    found = fit_isotonic(make_reads(logit, right, response))
    levels = sorted(set(logit.tolist()))
    counts = [int((logit == level).sum()) for level in levels]
    shares, sizes = pooled([float(right[logit == level].mean()) for level in levels], counts)
    ends = np.cumsum(sizes)
    knots, shrunk, members = [], [], []
    for share, start, stop in zip(shares, ends - sizes, ends, strict=True):
        inside = np.isin(logit, levels[start:stop])
        responses = len(set(response[inside].tolist()))
        knots.append(logit[inside].mean())
        members.append(inside.sum())
        shrunk.append((share * responses + 0.5) / (responses + 1))
    again, again_sizes = pooled(shrunk, members)
    expected = np.repeat(again, again_sizes)
    assert found.logits == pytest.approx(knots)
    assert 1 / (1 + np.exp(-np.array(found.mapped))) == pytest.approx(expected)
    assert np.all((expected > 0) & (expected < 1))


def test_a_perfect_judge_is_trusted_as_far_as_its_responses_go() -> None:
    # 3 responses with 100 reads each a side: (3 + 1/2) / (3 + 1), not (300 + 1/2) / 301.
    right = np.repeat([False, True], 300)
    reads = make_reads(np.where(right, 9.0, -9.0), right, np.repeat(np.arange(6), 100))
    assert 1 / (1 + np.exp(-np.array(fit_isotonic(reads).mapped))) == pytest.approx([0.125, 0.875])


@pytest.mark.parametrize(("slope", "offset"), [(0.5, 1.0), (2.0, -0.7), (0.1, 0.0)])
def test_temperature_recovers_a_known_map(slope: float, offset: float) -> None:
    rng = np.random.default_rng(3)
    logit = rng.normal(scale=3 / slope**0.5, size=40000)
    right = rng.random(len(logit)) < 1 / (1 + np.exp(-(slope * logit + offset)))
    found = fit_temperature(make_reads(logit, right))
    assert found.slope == pytest.approx(slope, rel=0.05) and found.offset == pytest.approx(offset, abs=0.05)


def test_temperature_of_a_perfect_judge_is_finite_and_of_an_inverted_one_near_flat() -> None:
    right = np.repeat([False, True], 20)
    perfect = fit_temperature(make_reads(np.where(right, 2.0, -2.0), right))
    assert perfect.apply(np.float32([2.0]))[0] == pytest.approx(math.log(21), rel=1e-3)
    assert fit_temperature(make_reads(np.where(right, -2.0, 2.0), right)).slope < 0.01


def overconfident(seed: int) -> tuple[Reads, np.ndarray]:
    """Logits three times too far out, on 200 prompts of two responses, a read of each class in each."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(scale=1.2, size=400)
    right = rng.random(400) < 1 / (1 + np.exp(-truth))
    response = np.repeat(np.arange(400), 3)
    reads = Reads(logit=3 * truth[response], right=right[response], response=response, prompt=response // 2)
    return reads, np.tile([0, 1, 2], 400)


@pytest.mark.parametrize("method", ["isotonic", "temperature"])
def test_calibration_helps_on_prompts_it_has_not_seen(method: str) -> None:
    reads, classes = overconfident(0)
    calibration, figures = calibrate(reads, classes, profile=PROFILE, method=method, seed=0)
    assert tuple(figures) == POSITION_CLASSES == tuple(calibration.maps)
    for row in figures.values():
        before, after = row.held_out_before, row.held_out_after
        assert before is not None and after is not None
        assert row.fitted_reads == row.held_out_reads == 200 and row.reads == 400 == sum(row.histogram)
        assert after.ece < 0.7 * before.ece and after.brier < before.brier and after.log_loss < before.log_loss


def test_no_prompt_is_on_both_sides_of_the_split() -> None:
    prompts = np.repeat(np.arange(11), 5)
    chosen = fitting_prompts(prompts, seed=4)
    assert len(chosen) == len(set(chosen.tolist())) == 6
    assert np.array_equal(chosen, fitting_prompts(prompts, seed=4))
    assert not np.array_equal(np.sort(chosen), np.sort(fitting_prompts(prompts, seed=5)))
    # Held-out labels turned round change no map.
    reads, classes = overconfident(1)
    seen = np.isin(reads.prompt, fitting_prompts(reads.prompt, seed=0))
    turned = Reads(
        logit=reads.logit, right=np.where(seen, reads.right, ~reads.right), response=reads.response, prompt=reads.prompt
    )
    first, figures = calibrate(reads, classes, profile=PROFILE, method="isotonic", seed=0)
    second, other = calibrate(turned, classes, profile=PROFILE, method="isotonic", seed=0)
    assert first == second and figures["mid_step"].held_out_after != other["mid_step"].held_out_after


@pytest.mark.parametrize("value", [True, False])
def test_one_sided_answers_leave_figures_out_and_say_so(value: bool) -> None:
    reads = make_reads(np.arange(8.0), np.full(8, value))
    calibration, figures = calibrate(reads, np.zeros(8, int), profile=PROFILE, method="isotonic", seed=0)
    row = figures["step_end"]
    assert not calibration.maps and row.auc is None and row.auc_low is None and row.held_out_after is None
    assert f"all answers are {'right' if value else 'wrong'}" in (row.note or "")
    assert "could not be tested" in verdict(figures)


def test_few_wrong_answers_give_no_interval_and_no_verdict() -> None:
    right = np.arange(60) >= 9
    reads = make_reads(np.arange(60.0), right)
    _, few = calibrate(reads, np.zeros(60, int), profile=PROFILE, method="isotonic", seed=0)
    assert few["step_end"].auc == 1 and few["step_end"].auc_low is None and "could not be tested" in verdict(few)
    assert "51 right and 9 wrong responses are too few" in (few["step_end"].note or "")
    more = make_reads(reads.logit, np.arange(60) >= 10)
    _, enough = calibrate(more, np.zeros(60, int), profile=PROFILE, method="isotonic", seed=0)
    assert enough["step_end"].auc_low == 1 and enough["step_end"].note is None


def test_scores_that_are_no_numbers_are_counted_and_left_out() -> None:
    reads, classes = overconfident(2)
    reads.logit[:6] = [np.nan, np.inf, -np.inf, np.nan, 0, 0]
    _, figures = calibrate(reads, classes, profile=PROFILE, method="isotonic", seed=0)
    assert [(row.invalid, row.reads) for row in figures.values()] == [(2, 398), (1, 399), (1, 399)]


def test_agreement_by_hand() -> None:
    a, b = np.array([1.0, 2.0, 3.0, -1.0, 5.0]), np.array([10.0, 20.0, -30.0, -5.0, np.nan])
    found = agreement(a, b, np.array([0, 0, 0, 0, 0]))["step_end"]
    # Ranks 2 3 4 1 and 3 4 1 2: 1 - 6 (1 + 1 + 9 + 1) / (4 * 15) = -0.2
    assert found.reads == 4 and found.spearman == pytest.approx(-0.2) and found.same_side == 0.75
    assert agreement(a, np.ones(5), np.zeros(5, int))["step_end"].spearman is None


def figures_of(auc: float, low: float, high: float) -> ClassFigures:
    reads, classes = overconfident(0)
    _, figures = calibrate(reads, classes, profile=PROFILE, method="isotonic", seed=0)
    return figures["step_end"].model_copy(update={"auc": auc, "auc_low": low, "auc_high": high})


def test_the_verdict_follows_the_intervals() -> None:
    good, flat, bad = figures_of(0.8, 0.7, 0.9), figures_of(0.52, 0.47, 0.57), figures_of(0.3, 0.2, 0.4)
    classes: dict[PositionClass, ClassFigures] = {"step_end": good, "step_start": bad, "mid_step": flat}
    assert verdict(classes) == (
        "The score tells right from wrong at step ends (AUC 0.80, 0.70 to 0.90); it does not tell right from wrong mid-step"
        " (AUC 0.52, 0.47 to 0.57); it ranks wrong above right at step starts (AUC 0.30, 0.20 to 0.40)."
    )
    assert "at step ends (AUC 0.80, 0.70 to 0.90) and mid-step" in verdict({"step_end": good, "mid_step": good})


@pytest.mark.parametrize(
    ("scores", "reads_at", "trained_on", "warned"),
    [
        ("token", "at the token itself", "the newline that ends a step", True),
        ("token", "at the token itself", "every token: it knows the rules", False),
        ("token", "at every token, as a log-ratio of two models", "answers", False),
        ("step", "at the tag behind a step", "the verdict behind a step", False),
    ],
)
def test_extrapolation_is_said_where_training_was_elsewhere(
    scores: str, reads_at: str, trained_on: str, warned: bool
) -> None:
    reads, classes = overconfident(0)
    calibration, figures = calibrate(reads, classes, profile=PROFILE, method="isotonic", seed=0)
    report = CalibrationReport(
        calibration=calibration, scores=scores, reads=reads_at, trained_on=trained_on, seed=0, num_prompts=2,
        num_fitted_prompts=1, num_responses=4, num_right=2, num_unchecked=0, classes=figures, others=(), made_with={},
    )  # fmt: skip
    said = extrapolation(report)
    assert (said is not None) == warned and (not warned or trained_on in (said or ""))


def test_a_calibrated_oracle_is_less_wrong_on_prompts_it_has_not_seen() -> None:
    tokenizer = load_tokenizer(resolve_model(STUDENT))
    judge, positions, pairs = OracleJudge(tokenizer, confidence=0.99), StepPositions(tokenizer), make_pairs(24)
    responses = [ids for pair in pairs for ids in (pair.teacher_ids, pair.student_ids)]
    questions = [pair.question for pair in pairs for _ in range(2)]
    lengths = [len(ids) for ids in responses]
    request = JudgeRequest(questions=tuple(questions), responses=tuple(responses), proposals=tuple(responses))
    reads = Reads(
        logit=judge.score(request).trunk_logit.astype(np.float64),
        right=np.repeat(np.arange(len(responses)) % 2 == 0, lengths),
        response=np.repeat(np.arange(len(responses)), lengths),
        prompt=np.repeat(np.arange(len(responses)) // 2, lengths),
    )
    classes = np.concatenate([positions.classes(ids) for ids in responses])
    calibration, _ = calibrate(reads, classes, profile=judge.profile, method="isotonic", seed=0)
    held_out = ~np.isin(reads.prompt, fitting_prompts(reads.prompt, seed=0)) & (classes == 2)
    mapped = CalibratedJudge(judge, calibration, tokenizer=tokenizer).score(request).trunk_logit.astype(np.float64)
    before, after = (quality(logit[held_out], reads.right[held_out]) for logit in (reads.logit, mapped))
    assert after.ece < 0.5 * before.ece and after.log_loss < before.log_loss


def test_temperature_map_is_what_quality_is_measured_with() -> None:
    reads, classes = overconfident(5)
    calibration, figures = calibrate(reads, classes, profile=PROFILE, method="temperature", seed=0)
    own, fitted = calibration.maps["mid_step"], fitting_prompts(reads.prompt, seed=0)
    assert isinstance(own, TemperatureMap)
    held_out = reads.where((classes == 2) & ~np.isin(reads.prompt, fitted))
    again = quality(own.slope * held_out.logit + own.offset, held_out.right)
    after = figures["mid_step"].held_out_after
    assert after is not None and after.log_loss == pytest.approx(again.log_loss, rel=1e-5)
