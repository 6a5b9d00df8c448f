"""Win rates and what they rest on."""

import json
from math import comb

import pytest

from vcrd_ray.data.accuracy import wilson_interval
from vcrd_ray.errors import JudgeError
from vcrd_ray.evaluation.instruct.figures import figures
from vcrd_ray.evaluation.instruct.pairwise import PairRecord, Ruling, score_of
from vcrd_ray.evaluation.instruct.prompts import Order, Verdict


def _ruling(order: Order, verdict: str) -> Ruling:
    """Of a letter; `-` an unparsable reply, `x` a refused request."""
    known: Verdict = verdict if verdict in "ABC" else "unparsable"  # type: ignore[assignment]
    return Ruling(
        order=order,
        verdict=known,
        score=score_of(known, order),
        reply=None if verdict == "x" else verdict,
        finish_reason="length" if verdict == "-" else "stop",
        refusal="no" if verdict == "x" else None,
    )


def _records(*verdicts: str) -> list[PairRecord]:
    """Of two letters a pair: with the model first, with the reference first; `==` is a pair of equal answers."""
    return [
        PairRecord(
            id=str(n),
            category=None,
            identical=two == "==",
            rulings=(
                _ruling("model_first", "C" if two == "==" else two[0]),
                _ruling("reference_first", "C" if two == "==" else two[1]),
            ),
        )
        for n, two in enumerate(verdicts)
    ]


def test_the_mean_of_orders_is_the_published_figure() -> None:
    verdicts = ("AB", "AA", "BB", "CC", "BA", "-B", "-A", "CB", "A-")
    result = figures(_records(*verdicts), scheme="mean", confidence=0.95)
    # As published: wins and half ties of the replies that name a verdict, for each order by itself.
    firsts = [two[0] for two in verdicts if two[0] != "-"]
    seconds = [two[1] for two in verdicts if two[1] != "-"]
    first = (firsts.count("A") + 0.5 * firsts.count("C")) / len(firsts)
    second = (seconds.count("B") + 0.5 * seconds.count("C")) / len(seconds)
    model_first, reference_first = result.orders
    assert model_first.win_rate is not None and model_first.win_rate.value == pytest.approx(first)
    assert reference_first.win_rate is not None and reference_first.win_rate.value == pytest.approx(second)
    assert result.win_rate.value == pytest.approx((first + second) / 2)
    assert (model_first.wins, model_first.ties, model_first.losses, model_first.unparsable) == (3, 2, 2, 2)
    assert (result.unparsable, result.cut_off, result.win_rate.num_pairs) == (3, 3, 9)


def test_refused_requests_are_counted_apart() -> None:
    result = figures(_records("xB", "AB", "-B"), scheme="mean", confidence=0.95)
    assert (result.refused, result.unparsable) == (1, 1)
    assert result.orders[0].win_rate is not None and result.orders[0].win_rate.value == 1.0


def test_inconsistent_pairs_and_position_bias_are_those_of_both_orders() -> None:
    # Consistent, always the first twice, a tie against a win, and three that say nothing of order.
    result = figures(_records("AB", "AA", "AA", "CB", "==", "-B", "Ax"), scheme="mean", confidence=0.95)
    assert (result.compared, result.inconsistent, result.identical) == (4, 3, 1)
    assert result.position_bias == pytest.approx((5 - 2) / 8)


@pytest.mark.parametrize(
    ("verdicts", "bias"), [(("AA", "AA"), 1.0), (("BB",), -1.0), (("AB", "BA"), 0.0), (("==",), None)]
)
def test_position_bias_is_one_for_always_the_first(verdicts: tuple[str, ...], bias: float | None) -> None:
    assert figures(_records(*verdicts), scheme="mean", confidence=0.95).position_bias == bias


def test_disagreement_is_a_tie_and_a_missing_verdict_drops_the_pair() -> None:
    result = figures(_records("AB", "AA", "CB", "BA", "-B", "CC"), scheme="disagreement_is_tie", confidence=0.95)
    # Won, tie, tie, lost, dropped, tie.
    assert result.win_rate.value == pytest.approx((1 + 0.5 + 0.5 + 0 + 0.5) / 5)
    assert (result.win_rate.num_pairs, result.num_pairs) == (5, 6)


def test_single_orders_are_taken_together() -> None:
    both = _records("A-", "BB", "CC", "BB")
    drawn = [record.model_copy(update={"rulings": (record.rulings[n % 2],)}) for n, record in enumerate(both)]
    result = figures(drawn, scheme="mean", confidence=0.95)
    # A as the model, B as the reference's rival, a tie, B again: 1, 1, 0.5, 1.
    assert result.win_rate.value == pytest.approx(3.5 / 4)
    assert (result.compared, result.position_bias, len(result.orders)) == (0, None, 2)


def test_a_judge_without_any_verdict_is_an_error_and_not_a_figure() -> None:
    with pytest.raises(JudgeError, match="no reply of reference_first states a verdict"):
        figures(_records("A-", "B-"), scheme="mean", confidence=0.95)
    with pytest.raises(JudgeError, match="both orders of a pair"):
        figures(_records("A-", "-B"), scheme="disagreement_is_tie", confidence=0.95)


def test_what_cannot_be_summed_up_is_refused() -> None:
    with pytest.raises(ValueError, match="no records"):
        figures([], scheme="mean", confidence=0.95)
    (record,) = _records("AB")
    with pytest.raises(ValueError, match="needs both orders"):
        figures(
            [record.model_copy(update={"rulings": record.rulings[:1]})], scheme="disagreement_is_tie", confidence=0.95
        )


def test_swapping_model_and_reference_mirrors_the_win_rate() -> None:
    verdicts = ("AB", "AA", "BA", "CB", "-A", "CC")
    # Their places swap, hence the orders; the letters stand.
    swapped = tuple(two[::-1] for two in verdicts)
    rate, mirrored = (figures(_records(*some), scheme="mean", confidence=0.9).win_rate for some in (verdicts, swapped))
    assert mirrored.value == pytest.approx(1 - rate.value)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - rate.high, 1 - rate.low))


def test_the_interval_covers_as_often_as_it_says() -> None:
    # Exactly, over all counts of wins in 100 pairs: no interval of counts covers the same everywhere.
    for p in (0.05, 0.2, 0.5, 0.7):
        covered = 0.0
        for wins in range(101):
            low, high = wilson_interval(wins / 100, 100, confidence=0.95)
            covered += comb(100, wins) * p**wins * (1 - p) ** (100 - wins) * (low <= p <= high)
        assert 0.93 < covered < 0.98


def test_an_interval_stays_between_none_and_all() -> None:
    assert wilson_interval(0.0, 3, confidence=0.99)[0] == 0.0 and 0 < wilson_interval(0.0, 3, confidence=0.99)[1] < 1
    assert wilson_interval(1.0, 3, confidence=0.99)[1] == 1.0


def test_figures_are_written_as_json() -> None:
    result = figures(_records("AB", "=="), scheme="mean", confidence=0.95)
    written = json.loads(result.model_dump_json())
    assert written["win_rate"]["value"] == 0.75 and written["orders"][0]["order"] == "model_first"
    assert type(result).model_validate(written) == result
    assert str(result.win_rate).startswith("75.0% [")
