"""What the weights do to the loss, by what the judge says of both proposals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vcrd_ray.types import Decision

_VALID = 0.5
_NAMES = {
    (True, True): "both valid",
    (True, False): "only the teacher's valid",
    (False, True): "only the student's valid",
    (False, False): "neither valid",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The decisions of one kind. Shares are of all judged decisions; a valid proposal scores at least 0.5."""

    name: str
    share: float
    """Of the decisions."""
    divergence_share: float
    """Of the loss without weights: divergences over response lengths."""
    weighted_share: float
    """Of the loss with weights."""
    weight: float
    """The weight that this kind's divergence got on average; NaN where it has none."""


def verdicts(decisions: Sequence[Decision]) -> list[Verdict]:
    """All four kinds, from a uniform sample of judged decisions."""
    count = dict.fromkeys(_NAMES, 0)
    plain, weighted = dict.fromkeys(_NAMES, 0.0), dict.fromkeys(_NAMES, 0.0)
    for decision in decisions:
        kind = (decision.teacher_score >= _VALID, decision.student_score >= _VALID)
        loss = decision.divergence / decision.length
        count[kind] += 1
        plain[kind] += loss
        weighted[kind] += decision.weight * loss
    totals = max(1, len(decisions)), sum(plain.values()) or 1.0, sum(weighted.values()) or 1.0
    return [
        Verdict(
            name=name,
            share=count[kind] / totals[0],
            divergence_share=plain[kind] / totals[1],
            weighted_share=weighted[kind] / totals[2],
            weight=weighted[kind] / plain[kind] if plain[kind] else float("nan"),
        )
        for kind, name in _NAMES.items()
    ]
