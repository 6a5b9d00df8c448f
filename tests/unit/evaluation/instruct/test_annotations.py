"""Published judgements, scored here."""

import json
from pathlib import Path

import pytest

from tests.unit.evaluation.instruct.instruct_data import instruct_file
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.instruct.annotations import read_annotations
from vcrd_ray.evaluation.instruct.figures import figures


def _write(path: Path, *preferences: object, same: bool = False) -> Path:
    rows = [{"output_1": "r", "output_2": "r" if same else "m", "preference": p} for p in preferences]
    path.write_text(json.dumps(rows))
    return path


def test_shipped_judgements_are_won_where_they_say_so() -> None:
    path = instruct_file("grader_cases/judge.open.jsonl")
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    records = read_annotations(path)
    assert len(records) == len(cases) > 0
    won = {record.id: record.rulings[0].score == 1.0 for record in records}
    assert won == {case["id"]: case["expected"] for case in cases}


def test_the_win_rate_of_shipped_judgements_is_alpaca_eval_s() -> None:
    path = instruct_file("grader_cases/judge.open.jsonl")
    cases = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    result = figures(read_annotations(path), scheme="mean", confidence=0.95)
    assert result.win_rate.value == pytest.approx(sum(case["preference"] - 1 for case in cases) / len(cases))


def test_preferences_between_count_in_parts_and_missing_ones_not_at_all(tmp_path: Path) -> None:
    records = read_annotations(_write(tmp_path / "a.json", 1, 2.0, 1.5, 0, 1.75, None, float("nan")))
    assert [record.rulings[0].score for record in records] == [0, 1, 0.5, 0.5, 0.75, None, None]
    assert [record.rulings[0].verdict for record in records] == ["A", "B", "C", "C", "B", "unparsable", "unparsable"]
    result = figures(records, scheme="mean", confidence=0.95)
    assert result.win_rate.value == pytest.approx((0 + 1 + 0.5 + 0.5 + 0.75) / 5)
    assert (result.orders[0].wins, result.orders[0].ties, result.orders[0].losses, result.unparsable) == (2, 2, 1, 2)


def test_equal_outputs_without_preference_are_a_tie(tmp_path: Path) -> None:
    (record,) = read_annotations(_write(tmp_path / "a.json", None, same=True))
    assert record.identical and record.rulings[0].score == 0.5


@pytest.mark.parametrize("preference", [3, -1, "2", True])
def test_a_preference_of_another_kind_is_refused_by_name(tmp_path: Path, preference: object) -> None:
    with pytest.raises(DataError, match=r"a\.json, item 1: preference is"):
        read_annotations(_write(tmp_path / "a.json", preference))


def test_rows_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"output_1": "r"}]')
    with pytest.raises(DataError, match="item 1: field 'output_2' is no text"):
        read_annotations(tmp_path / "a.json")
