"""Statistics of methods over paired seeds, against figures worked out by hand."""

import math

import pytest

from vcrd_ray.report.comparison import compare


def test_means_intervals_and_paired_differences() -> None:
    reference = {0: 0.50, 1: 0.60, 2: 0.55}
    other = {0: 0.52, 1: 0.61, 2: 0.58}
    rows = {row.method: row for row in compare({"a": reference, "b": other}, reference="a")}
    assert rows["a"].difference == 0 and math.isnan(rows["a"].p_value)
    b = rows["b"]
    assert b.mean == pytest.approx(0.57) and b.difference == pytest.approx(0.02)
    # Differences .02, .01, .03: standard deviation .01, t quantile 4.3027 with 2 degrees of freedom.
    assert b.difference_low == pytest.approx(0.02 - 4.3027 * 0.01 / math.sqrt(3), abs=1e-5)
    # t = .02 / (.01 / sqrt 3) = 3.4641; two-sided p with 2 degrees of freedom is 1 - t / sqrt(2 + t^2).
    assert b.p_value == pytest.approx(1 - 3.4641 / math.sqrt(2 + 3.4641**2), abs=1e-4)


def test_only_seeds_of_both_count_and_one_seed_has_no_interval() -> None:
    (row,) = [r for r in compare({"a": {0: 0.5, 1: 0.9}, "b": {1: 0.8, 2: 0.1}}, reference="a") if r.method == "b"]
    assert row.num_seeds == 1 and row.difference == pytest.approx(-0.1) and math.isnan(row.difference_low)


@pytest.mark.parametrize(
    ("values", "message"), [({"b": {0: 1.0}}, "no results of a"), ({"a": {0: 1.0}, "b": {1: 1.0}}, "b has no seed")]
)
def test_what_cannot_be_compared_is_refused(values: dict[str, dict[int, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(values, reference="a")
