"""Teachers in order, with intervals that pair prompts."""

from __future__ import annotations

import numpy as np
import pytest

from vcrd_ray.errors import DataError
from vcrd_ray.selection.ranking import rank_teachers
from vcrd_ray.selection.scores import ResponseScore


def scores(values: dict[str, float], denominator: float = 1.0) -> dict[str, list[ResponseScore]]:
    return {prompt: [ResponseScore(numerator=v, denominator=denominator)] for prompt, v in values.items()}


def test_only_shared_prompts_count() -> None:
    found = rank_teachers(
        {"x": scores({"p": -1.0, "q": -2.0, "only": 100.0}), "y": scores({"p": 0.0, "q": -1.0})}, score="lalp", seed=0
    )
    assert [(t.name, t.mean, t.num_prompts) for t in found.teachers] == [("y", -0.5, 2), ("x", -1.5, 3)]
    assert found.num_shared_prompts == 2
    assert found.teachers[1].difference == found.teachers[1].difference_low == -1.0


def test_differences_are_paired_by_prompt() -> None:
    rng = np.random.default_rng(0)
    hard = {str(i): float(v) for i, v in enumerate(rng.normal(size=200))}
    better = {p: v + 0.1 + 0.05 * float(rng.normal()) for p, v in hard.items()}
    first, second = rank_teachers({"x": scores(hard), "y": scores(better)}, score="lalp", seed=0).teachers
    assert first.name == "y" and second.low < first.mean < second.high  # alone they overlap
    assert second.difference_high < 0


def test_rsr_is_a_quotient_of_means_and_low_is_good() -> None:
    x = {**scores({"p": 2.0}, denominator=1.0), **scores({"q": 2.0}, denominator=3.0)}
    found = rank_teachers({"y": scores({"p": 2.0, "q": 2.0}), "x": x}, score="rsr", seed=0)
    assert [t.name for t in found.teachers] == ["x", "y"]
    assert found.teachers[0].mean == pytest.approx(4 / 4)


def test_several_responses_to_a_prompt_count_as_their_mean_and_equals_stay_in_order() -> None:
    several = {"p": [ResponseScore(numerator=v) for v in (0.0, 2.0)]}
    found = rank_teachers({"y": scores({"p": 1.0}), "x": several}, score="lalp", seed=0)
    assert [(t.name, t.mean) for t in found.teachers] == [("y", 1.0), ("x", 1.0)]


def test_teachers_without_a_shared_prompt_are_refused() -> None:
    with pytest.raises(DataError, match=r"x: 1, y: 1.*same rollouts\.prompts"):
        rank_teachers({"x": scores({"p": 0.0}), "y": scores({"q": 0.0})}, score="lalp", seed=0)
