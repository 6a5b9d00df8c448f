"""Figures of benchmarks, and of two on the same questions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from vcrd_ray.data.accuracy import accuracy
from vcrd_ray.evaluation.answers import Graded
from vcrd_ray.evaluation.results import harness_results, summarize
from vcrd_ray.evaluation.statistics import bootstrap_interval, mean_interval, paired_difference


def graded(counts: list[int], samples: int) -> list[Graded]:
    return [
        Graded(
            id=str(i),
            sample=s,
            correct={"qwen": s < count, "math_verify": s <= count},
            verdict={"qwen": "correct" if s < count else "wrong", "math_verify": "correct"},
            prediction=None,
        )
        for i, count in enumerate(counts)
        for s in range(samples)
    ]


def test_one_answer_each_gives_a_wilson_interval() -> None:
    figures = summarize(
        "s",
        graded([1, 0, 1, 1], 1),
        metrics=("qwen", "math_verify"),
        samples=1,
        ks=(1,),
        cut_off=0,
        no_room=0,
        confidence=0.95,
    )
    wilson = accuracy(correct=3, total=4, confidence=0.95)
    first = figures.metrics[0]
    assert (first.value, first.low, first.high) == (wilson.pass_at_1, wilson.low, wilson.high)
    assert figures.num_questions == 4 and figures.graders_differ == 1
    assert first.verdicts == {"correct": 3, "wrong": 1}


def test_several_answers_are_counted_by_question() -> None:
    figures = summarize(
        "s", graded([0, 2, 4], 4), metrics=("qwen",), samples=4, ks=(1, 2, 4), cut_off=0, no_room=0, confidence=0.95
    )
    first = figures.metrics[0]
    assert first.value == pytest.approx(0.5) and first.pass_at[1] == pytest.approx(0.5)
    assert first.pass_at[2] == pytest.approx((0 + (1 - 1 / 6) + 1) / 3)
    assert first.pass_at[4] == pytest.approx(2 / 3) and first.mean_at[4] == pytest.approx(0.5)
    # Twelve answers are not twelve independent ones.
    narrow = accuracy(correct=6, total=12, confidence=0.95)
    assert first.high - first.low > narrow.high - narrow.low


def test_the_harness_shape_names_metric_and_filter() -> None:
    figures = summarize(
        "s", graded([1, 0], 1), metrics=("qwen",), samples=1, ks=(1,), cut_off=0, no_room=0, confidence=0.95
    )
    row = harness_results([figures], model="m", settings={}, seconds=1.0)["results"]["s"]
    assert row["pass@1,qwen"] == 0.5 and row["pass@1_stderr,qwen"] == pytest.approx(0.5 / 2**0.5)


def test_the_bootstrap_of_several_figures_agrees_with_scipy_s() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(2, 80)) + 3

    def quotients(drawn: np.ndarray) -> np.ndarray:
        above, below = values[:, drawn].mean(1)
        return np.array([above / below, below / above])

    low, high = bootstrap_interval(quotients, 80, confidence=0.9, resamples=4000, seed=0)
    for i, (above, below) in enumerate([values, values[::-1]]):
        other = bootstrap(
            (above, below),
            lambda a, b, axis: a.mean(axis) / b.mean(axis),
            paired=True,
            method="percentile",
            confidence_level=0.9,
            n_resamples=4000,
            rng=np.random.default_rng(0),
        )
        # A percentile of 4000 samples is known to about a thirtieth of the interval.
        assert np.allclose((low[i], high[i]), other.confidence_interval, atol=(high[i] - low[i]) / 15)


def test_samples_of_which_the_statistic_is_undefined_are_left_out_and_one_thing_is_an_interval() -> None:
    low, high = bootstrap_interval(
        lambda drawn: 1.0 if 0 in drawn else float("nan"), 3, confidence=0.9, resamples=100, seed=0
    )
    assert (low, high) == (1.0, 1.0)
    assert mean_interval([0.5], confidence=0.9) == (0.5, 0.5)


def test_the_bootstrap_agrees_with_the_normal_interval_where_that_is_right() -> None:
    values = np.random.default_rng(1).normal(3.0, 1.0, size=2000).tolist()
    low, high = mean_interval(values, confidence=0.95)
    spread = 1.96 * float(np.std(values)) / 2000**0.5
    assert (low, high) == pytest.approx((np.mean(values) - spread, np.mean(values) + spread), abs=0.1 * spread)


def test_a_paired_difference_counts_only_what_changed() -> None:
    first, second = [1.0] * 50 + [0.0] * 50, [1.0] * 45 + [0.0] * 40 + [1.0] * 15
    found = paired_difference(first, second, confidence=0.95)
    assert (found.better, found.worse, found.num_questions) == (15, 5, 100)
    assert found.difference == pytest.approx(0.1)
    assert found.p_value == pytest.approx(binomtest(15, 20).pvalue)
    assert found.low < 0.1 < found.high
    # 20 of 100 questions differ: about 2.8 standard errors.
    assert found.detectable == pytest.approx(2.8 * (0.2 / 100) ** 0.5, rel=0.01)


def test_equal_models_are_not_told_apart_by_thirty_questions() -> None:
    found = paired_difference([1.0] * 30, [1.0] * 30, confidence=0.95)
    assert (found.difference, found.p_value) == (0.0, 1.0) and found.detectable > 0.05


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2 questions cannot be paired"):
        paired_difference([1.0, 0.0, 1.0], [1.0, 0.0], confidence=0.95)
