"""A model's answers beside others -> a judge's rulings, in the orders asked for. Knows no endpoint and no figures."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from vcrd_ray.config.base import THINKING, Thinking
from vcrd_ray.config.instruct import AskedOrder, Parsing
from vcrd_ray.errors import DataError
from vcrd_ray.evaluation.instruct.prompts import (
    PAPER_PROMPT,
    JudgePrompt,
    Messages,
    Order,
    Pair,
    Verdict,
    parse_verdict,
    render,
)
from vcrd_ray.evaluation.instruct.replies import Refusal, Reply
from vcrd_ray.evaluation.instruct.sets import InstructItem
from vcrd_ray.grading.thinking import read_answer

Answers = Mapping[str, tuple[str, ...]]
"""By the item's id, one text a turn."""

_DRAW_SEED = 0
_NAMED = 5  # ids that an error names
_GOLD_CATEGORIES = frozenset({"math", "reasoning", "coding"})
"""Of MT-Bench: only there is the judge shown right answers."""


class ChatJudge(Protocol):
    """What rulings are asked of."""

    def ask(self, prompts: Sequence[Messages]) -> Iterator[tuple[int, Reply | Refusal]]:
        """The answer to each prompt with its index, in any order."""
        ...


class Ruling(BaseModel):
    """What came of one order of one pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: Order
    verdict: Verdict
    score: float | None
    """For the model: 1 won, 0.5 tie, 0 lost; None where the reply does not say or there is none."""
    reply: str | None
    """The judge's words; None where there are none."""
    finish_reason: str | None
    refusal: str | None
    """Why the endpoint did not take the request."""


class PairRecord(BaseModel):
    """All that was ruled on one pair."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    category: str | None
    identical: bool
    """Equal answers are a tie, without a call."""
    rulings: tuple[Ruling, ...]


def pair_up(
    items: Sequence[InstructItem], answers: Answers, *, against: Answers | None = None, thinking: Thinking = THINKING
) -> list[Pair]:
    """Each item with the model's answer and the one it is compared with: its reference, or another model's in `against`.

    Args:
        thinking: what is taken off the answers to compare with; those of the model come without.

    Raises:
        DataError: an answer is missing, is to no item, has another number of turns than its question, or is one to compare
            with whose thinking does not end.
    """
    rivals: Answers = {item.id: item.reference for item in items if item.reference} if against is None else against
    ids = [item.id for item in items]
    for what, given in (("answers of the model", answers), ("answers to compare with", rivals)):
        missing = [id for id in ids if id not in given]
        if missing:
            raise DataError(
                f"{what} are missing to {len(missing)} of {len(ids)} questions: {_some(missing)}; give one each"
            )
        strangers = sorted(given.keys() - set(ids))
        if strangers:
            raise DataError(f"{what} are to questions that are not asked: {_some(strangers)}; give those of this set")
    return [
        Pair(
            id=item.id,
            category=item.category,
            turns=item.turns,
            answers=answers[item.id],
            references=tuple(_without_thinking(text, item.id, thinking) for text in rivals[item.id]),
            gold=item.gold if item.category in _GOLD_CATEGORIES else (),
        )
        for item in items
    ]


def judge_pairs(
    pairs: Sequence[Pair],
    judge: ChatJudge,
    *,
    order: AskedOrder,
    parsing: Parsing,
    prompt_of: Callable[[Pair], JudgePrompt] = lambda pair: PAPER_PROMPT,
    thinking: Thinking = THINKING,
) -> list[PairRecord]:
    """A record for each pair, in their order. Verdicts are not looked for in what a judge thought before.

    Raises:
        DataError: two pairs have one id, or a prompt does not fit a pair.
    """
    ids = {pair.id for pair in pairs}
    if len(ids) < len(pairs):
        raise DataError(f"{len(pairs) - len(ids)} ids stand in several pairs; make each id unique")
    places = [(index, one) for index, pair in enumerate(pairs) if not pair.identical for one in _orders(pair, order)]
    prompts = [render(prompt_of(pairs[index]), pairs[index], one) for index, one in places]
    rulings: dict[tuple[int, Order], Ruling] = {}
    for number, answer in judge.ask(prompts):
        place = places[number]
        rulings[place] = _ruling(place[1], answer, parsing, thinking)
    return [
        PairRecord(
            id=pair.id,
            category=pair.category,
            identical=pair.identical,
            rulings=tuple(
                _tie_without_call(one) if pair.identical else rulings[index, one] for one in _orders(pair, order)
            ),
        )
        for index, pair in enumerate(pairs)
    ]


def drawn_order(instruction: str) -> Order:
    """The order that AlpacaEval 1 shows an instruction's answers in: half of them with the reference first.

    It is drawn from the text, so that every model is shown in the same place.
    """
    # The words are part of the published seed.
    switched = random.Random(f"is_switched_outputs{instruction}{_DRAW_SEED}").choices([False, True])[0]
    return "model_first" if switched else "reference_first"


def score_of(verdict: Verdict, order: Order) -> float | None:
    """What a verdict is worth to the model."""
    match verdict:
        case "unparsable":
            return None
        case "C":
            return 0.5
        case _:
            return float((verdict == "A") == (order == "model_first"))


def _orders(pair: Pair, order: AskedOrder) -> tuple[Order, ...]:
    match order:
        case "both":
            return ("model_first", "reference_first")
        case "drawn":
            return (drawn_order("".join(pair.turns)),)
        case _:
            return (order,)


def _ruling(order: Order, answer: Reply | Refusal, parsing: Parsing, thinking: Thinking) -> Ruling:
    if isinstance(answer, Refusal):
        return Ruling(
            order=order, verdict="unparsable", score=None, reply=None, finish_reason=None, refusal=answer.message
        )
    said = read_answer(answer.text, thinking).answer
    verdict = parse_verdict(said, parsing, cut_off=answer.finish_reason == "length")
    return Ruling(
        order=order,
        verdict=verdict,
        score=score_of(verdict, order),
        reply=answer.text,
        finish_reason=answer.finish_reason,
        refusal=None,
    )


def _without_thinking(text: str, id: str, thinking: Thinking) -> str:
    reading = read_answer(text, thinking)
    if reading.thinking == "unfinished":
        raise DataError(f"the answer to compare with to {id} is thinking that does not end; give one that answers")
    return reading.answer


def _tie_without_call(order: Order) -> Ruling:
    return Ruling(order=order, verdict="C", score=0.5, reply=None, finish_reason=None, refusal=None)


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_NAMED]) + (", ..." if len(ids) > _NAMED else "")
