"""Rulings -> win rates with intervals, and how far the judge can be relied on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from vcrd_ray.config.instruct import Scheme
from vcrd_ray.data.accuracy import wilson_interval
from vcrd_ray.errors import JudgeError
from vcrd_ray.evaluation.instruct.pairwise import PairRecord, Ruling
from vcrd_ray.evaluation.instruct.prompts import Order


class WinRate(BaseModel):
    """A share of wins, ties counted half, with its Wilson interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float
    high: float
    num_pairs: int
    """That have a verdict. The interval takes them, not their orders, as independent."""
    confidence: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class OrderFigures(BaseModel):
    """The rulings with one answer in front."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Order
    wins: int
    ties: int
    """Those without a call included."""
    losses: int
    unparsable: int
    """Replies without a verdict; neither they nor refused requests are in the win rate."""
    refused: int
    win_rate: WinRate | None
    """None where there is no verdict."""


class PairwiseFigures(BaseModel):
    """A model against reference answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Scheme
    num_pairs: int
    win_rate: WinRate
    """By the scheme."""
    orders: tuple[OrderFigures, ...]
    identical: int
    """Pairs of equal answers."""
    unparsable: int
    """Replies without a verdict, over all orders."""
    refused: int
    cut_off: int
    """Replies that ended at the length limit."""
    compared: int
    """Pairs with a verdict in both orders, those of equal answers left out."""
    inconsistent: int
    """Of these, pairs whose outcome for the model changes with the order."""
    position_bias: float | None
    """Over both orders of these, how much more often the first answer wins than the second: 1 always, 0 as often, -1 never.
    None without such pairs."""


def figures(records: Sequence[PairRecord], *, scheme: Scheme, confidence: float) -> PairwiseFigures:
    """All figures.

    `mean`: each order's wins and half ties over its verdicts; then the mean of the two orders, whatever their numbers of
    verdicts. Records of one order a pair are taken together. `disagreement_is_tie`: a pair counts where both orders have a
    verdict; it is won or lost where both say so.

    Raises:
        ValueError: there are no records, or the scheme needs both orders of each.
        JudgeError: no reply of an order states a verdict.
    """
    if not records:
        raise ValueError("no records to take figures of")
    rulings = [ruling for record in records for ruling in record.rulings]
    both = all(len(record.rulings) == 2 for record in records)
    if scheme == "disagreement_is_tie" and not both:
        raise ValueError("scheme disagreement_is_tie needs both orders of each pair: ask both")
    seen: list[Order] = [
        order for order in ("model_first", "reference_first") if any(r.order == order for r in rulings)
    ]
    orders = tuple(_of_order(order, [r for r in rulings if r.order == order], confidence) for order in seen)
    compared = [
        record.rulings
        for record in records
        if len(record.rulings) == 2 and not record.identical and all(r.score is not None for r in record.rulings)
    ]
    letters = [ruling.verdict for pair in compared for ruling in pair]
    if scheme == "disagreement_is_tie":
        win_rate = _agreed(records, confidence)
    elif both:
        win_rate = _mean_of_orders(records, orders, confidence)
    else:
        win_rate = _rate([r.score for r in rulings if r.score is not None], confidence, of="the judge")
    return PairwiseFigures(
        scheme=scheme,
        num_pairs=len(records),
        win_rate=win_rate,
        orders=orders,
        identical=sum(record.identical for record in records),
        unparsable=sum(one.unparsable for one in orders),
        refused=sum(one.refused for one in orders),
        cut_off=sum(ruling.finish_reason == "length" for ruling in rulings),
        compared=len(compared),
        inconsistent=sum(one.score != other.score for one, other in compared),
        position_bias=(letters.count("A") - letters.count("B")) / len(letters) if letters else None,
    )


def _of_order(order: Order, rulings: Sequence[Ruling], confidence: float) -> OrderFigures:
    scores = [ruling.score for ruling in rulings if ruling.score is not None]
    return OrderFigures(
        order=order,
        wins=sum(score > 0.5 for score in scores),
        ties=sum(score == 0.5 for score in scores),
        losses=sum(score < 0.5 for score in scores),
        unparsable=sum(ruling.score is None and ruling.refusal is None for ruling in rulings),
        refused=sum(ruling.refusal is not None for ruling in rulings),
        win_rate=_rate(scores, confidence, of=order) if scores else None,
    )


def _mean_of_orders(records: Sequence[PairRecord], orders: Sequence[OrderFigures], confidence: float) -> WinRate:
    rates = []
    for one in orders:
        if one.win_rate is None:
            raise _speechless(one.order)
        rates.append(one.win_rate.value)
    num_judged = sum(any(ruling.score is not None for ruling in record.rulings) for record in records)
    return _with_interval(fmean(rates), num_judged, confidence)


def _agreed(records: Sequence[PairRecord], confidence: float) -> WinRate:
    scores = []
    for record in records:
        one, other = (ruling.score for ruling in record.rulings)
        if one is not None and other is not None:
            scores.append(one if one == other else 0.5)
    return _rate(scores, confidence, of="both orders of a pair")


def _rate(scores: Sequence[float], confidence: float, *, of: str) -> WinRate:
    if not scores:
        raise _speechless(of)
    return _with_interval(fmean(scores), len(scores), confidence)


def _with_interval(value: float, num_pairs: int, confidence: float) -> WinRate:
    low, high = wilson_interval(value, num_pairs, confidence=confidence)
    return WinRate(value=value, low=low, high=high, num_pairs=num_pairs, confidence=confidence)


def _speechless(what: str) -> JudgeError:
    return JudgeError(
        f"no reply of {what} states a verdict; look into the records whether the judge follows the prompt, is cut off by"
        " max_tokens or is refused, and take another judge or limit"
    )
