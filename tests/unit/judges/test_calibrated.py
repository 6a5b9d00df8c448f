"""A judge whose logits are mapped by the class of the position they are read at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from vcrd_ray.errors import ModelError
from vcrd_ray.judges import Judge, JudgeProfile
from vcrd_ray.judges.calibrated import (
    NOT_TEXT,
    CalibratedJudge,
    Calibration,
    IsotonicMap,
    StepPositions,
    TemperatureMap,
    read_calibration,
)
from vcrd_ray.tiny.tokenizer import build_tokenizer
from vcrd_ray.types import FloatArray, JudgeRequest, JudgeScores, StepSolution

MAPS = {
    "step_end": IsotonicMap(logits=(-2.0, 0.0, 3.0), mapped=(-1.0, -1.0, 2.0)),
    "step_start": TemperatureMap(slope=0.5, offset=1.0),
    "mid_step": TemperatureMap(slope=2.0, offset=-1.0),
}
CALIBRATION = Calibration(judge="fake", family="value_head", method="isotonic", maps=MAPS)


class FakeJudge:
    """Answers with logits that it was given."""

    def __init__(self, trunk: Sequence[float], proposal: Sequence[float], *, scores: str = "token") -> None:
        self.profile = JudgeProfile(fingerprint="fake", family="value_head", scores=scores, reads="", trained_on="")
        self._trunk, self._candidate = np.float32(trunk), np.float32(proposal)

    def score(self, request: JudgeRequest) -> JudgeScores:
        return JudgeScores(trunk_logit=self._trunk, branch_logit=self._candidate, num_tokens=7, seconds=1.5)

    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        return [self._trunk[: len(solution.steps)] for solution in solutions]

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        return 100.0 * num_branches + seed


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def ids_of(tokenizer: PreTrainedTokenizerFast, text: str, *, end: bool = True) -> np.ndarray:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return np.array([*ids, tokenizer.eos_token_id] if end else ids, dtype=np.int32)


def request_of(*responses: np.ndarray) -> JudgeRequest:
    return JudgeRequest(questions=("?",) * len(responses), responses=responses, proposals=responses)


END, START, MID = 0, 1, 2


@pytest.mark.parametrize(
    ("text", "end", "expected"),
    [
        ("1+2=3\n4", True, [START, MID, MID, MID, MID, END, END, NOT_TEXT]),
        ("1+2\n34", False, [START, MID, MID, END, START, END]),
        ("1\n\n2", True, [START, END, END, END, NOT_TEXT]),
        ("1\n", True, [START, END, NOT_TEXT]),
        ("", True, [NOT_TEXT]),
    ],
)
def test_positions_are_classified(
    tokenizer: PreTrainedTokenizerFast, text: str, end: bool, expected: list[int]
) -> None:
    assert StepPositions(tokenizer).classes(ids_of(tokenizer, text, end=end)).tolist() == expected


def test_a_token_that_holds_more_than_its_line_break_ends_a_step() -> None:
    class Merging(PreTrainedTokenizerFast):
        def batch_decode(self, sequences: list[list[int]], **how: object) -> list[str]:
            return [".\n\n" if ids == [9] else "x" for ids in sequences]

    tokenizer = Merging(tokenizer_object=build_tokenizer().backend_tokenizer, eos_token="<eos>")
    assert StepPositions(tokenizer).classes(np.int32([20, 9, 21, 22, 23])).tolist() == [START, END, START, MID, END]


def test_each_row_goes_by_its_class_and_both_proposals_by_the_same_map(tokenizer: PreTrainedTokenizerFast) -> None:
    response = ids_of(tokenizer, "12\n3")  # start, mid, end, end, special
    judge: Judge = CalibratedJudge(
        FakeJudge([1, 1, 1, -1, 3] * 2, [2, 2, 2, -1, 3] * 2), CALIBRATION, tokenizer=tokenizer
    )
    found = judge.score(request_of(response, response))
    assert found.trunk_logit.tolist() == [1.5, 1.0, 0.0, -1.0, 2.0] * 2
    assert found.branch_logit.tolist() == [2.0, 3.0, 1.0, -1.0, 2.0] * 2
    assert found.num_tokens == 7 and found.seconds == 1.5 and found.trunk_logit.dtype == np.float32


def test_scores_of_the_inner_judge_are_not_changed_in_place(tokenizer: PreTrainedTokenizerFast) -> None:
    inner = FakeJudge([1, 1, 1], [2, 2, 2])
    CalibratedJudge(inner, CALIBRATION, tokenizer=tokenizer).score(request_of(ids_of(tokenizer, "12")))
    assert inner.score(request_of()).trunk_logit.tolist() == [1, 1, 1]


def test_what_is_no_number_stays_none(tokenizer: PreTrainedTokenizerFast) -> None:
    response = ids_of(tokenizer, "12\n3")
    nan = [np.nan] * 5
    found = CalibratedJudge(FakeJudge(nan, nan), CALIBRATION, tokenizer=tokenizer).score(request_of(response))
    assert np.isnan(found.trunk_logit).all() and np.isnan(found.branch_logit).all()


numbers = st.floats(-50, 50, width=32)


@example([0.0, -1.1754943508222875e-38], [(0.0, -1.1754943508222875e-38), (-1.0, -1.0)])
@given(st.lists(numbers, min_size=2, max_size=20), st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8))
def test_maps_keep_order_and_equality(logits: list[float], knots: list[tuple[float, float]]) -> None:
    x = sorted({round(k[0], 2) for k in knots})
    isotonic = IsotonicMap(logits=tuple(x), mapped=tuple(sorted(k[1] for k in knots)[: len(x)]))
    ordered = np.sort(np.float32(logits))
    for own in (isotonic, TemperatureMap(slope=0.3, offset=-2.0)):
        mapped = own.apply(ordered)
        assert np.all(np.diff(mapped) >= 0)
        assert np.array_equal(own.apply(ordered[::-1])[::-1], mapped)
        same = own.apply(np.full(3, ordered[0]))
        assert same[0] == same[1] == same[2] == mapped[0]


def test_steps_go_by_the_map_of_step_ends(tokenizer: PreTrainedTokenizerFast) -> None:
    judge = CalibratedJudge(FakeJudge([3, -1, 0], []), CALIBRATION, tokenizer=tokenizer)
    (found,) = judge.score_steps([StepSolution(question="?", steps=("a", "b", "c"))])
    assert found.tolist() == [2.0, -1.0, -1.0]


def test_a_judge_of_steps_needs_the_map_of_step_ends_only(tokenizer: PreTrainedTokenizerFast) -> None:
    only = CALIBRATION.model_copy(update={"maps": {"step_end": MAPS["step_end"]}})
    judge = CalibratedJudge(FakeJudge([3, 3, 3], [np.nan, 3, 3], scores="step"), only, tokenizer=tokenizer)
    found = judge.score(request_of(ids_of(tokenizer, "12")))
    assert found.trunk_logit.tolist() == [2.0, 2.0, 2.0]
    assert np.isnan(found.branch_logit[0]) and found.branch_logit[1:].tolist() == [2.0, 2.0]


def test_self_check_is_the_inner_judges(tokenizer: PreTrainedTokenizerFast) -> None:
    judge = CalibratedJudge(FakeJudge([], []), CALIBRATION, tokenizer=tokenizer)
    assert judge.self_check(request_of(), num_branches=3, seed=7) == 307


def test_the_fingerprint_tells_calibrations_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    def fingerprint(calibration: Calibration) -> str:
        return CalibratedJudge(FakeJudge([], []), calibration, tokenizer=tokenizer).profile.fingerprint

    other = CALIBRATION.model_copy(update={"maps": {**MAPS, "mid_step": TemperatureMap(slope=2.0, offset=-1.1)}})
    assert fingerprint(CALIBRATION) == fingerprint(CALIBRATION.model_copy())
    assert len({"fake", fingerprint(CALIBRATION), fingerprint(other)}) == 3
    profile = CalibratedJudge(FakeJudge([], []), CALIBRATION, tokenizer=tokenizer).profile
    assert replace(profile, fingerprint="fake") == FakeJudge([], []).profile


def test_another_judges_calibration_is_refused_with_both_names(tokenizer: PreTrainedTokenizerFast) -> None:
    foreign = CALIBRATION.model_copy(update={"judge": "elsewhere"})
    with pytest.raises(ModelError, match=r"judge elsewhere .*this one is fake .*run jobs\.calibrate with this judge"):
        CalibratedJudge(FakeJudge([], []), foreign, tokenizer=tokenizer)


def test_a_missing_class_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    lacking = CALIBRATION.model_copy(update={"maps": {"step_end": MAPS["step_end"]}})
    with pytest.raises(ModelError, match="no map for step_start, mid_step"):
        CalibratedJudge(FakeJudge([], []), lacking, tokenizer=tokenizer)


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"calibration": CALIBRATION.model_dump(mode="json"), "classes": {}}))
    assert read_calibration(path) == CALIBRATION and read_calibration(path).fingerprint == CALIBRATION.fingerprint


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"calibration": 3}',
        json.dumps({"calibration": {**CALIBRATION.model_dump(mode="json"), "more": 1}}),
        json.dumps(
            {
                "calibration": {
                    **CALIBRATION.model_dump(mode="json"),
                    "maps": {"mid_step": {"kind": "isotonic", "logits": [0, 1], "mapped": [1, 0]}},
                }
            }
        ),
    ],
)
def test_a_foreign_file_is_refused_with_the_cure(tmp_path: Path, content: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=r"not a calibration\.json.*run jobs\.calibrate"):
        read_calibration(path)


def test_a_missing_file_is_refused_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot be read.*run jobs\.calibrate"):
        read_calibration(tmp_path / "nothing.json")
