"""What actors ask and what node types offer -> nodes, and what they cost. Knows no cloud and no cluster that runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Resources = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A type of node."""

    name: str
    count: int
    """As many as there can be."""
    always: int
    """Nodes of it that are up whatever runs, such as the head."""
    resources: Resources
    """Of each."""


@dataclass(frozen=True, kw_only=True)
class RoleAsk:
    """Actors of one role."""

    role: str
    count: int
    resources: Resources
    """Of each."""


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Where all actors of a stage go."""

    nodes: dict[str, int]
    """Node type -> nodes that are up, those that are always up included."""
    by_role: dict[str, dict[str, int]]
    """Role -> node type -> nodes of that type with an actor of the role."""
    actors: dict[str, dict[str, int]]
    """Role -> node type -> its actors on nodes of that type."""
    missing: dict[str, int]
    """Role -> actors for which there is no room."""


@dataclass(eq=False)
class _Node:
    offer: Offer
    free: dict[str, float]
    roles: set[str] = field(default_factory=set)
    up: bool = False


def place(asks: Sequence[RoleAsk], offers: Sequence[Offer]) -> Placing:
    """Each actor on the first node with room: nodes that are up before new ones, those without GPUs before those with."""
    nodes = [
        _Node(offer=offer, free=dict(offer.resources), up=index < offer.always)
        for offer in offers
        for index in range(offer.count)
    ]
    missing: Counter[str] = Counter()
    actors: dict[str, Counter[str]] = {ask.role: Counter() for ask in asks}
    for ask in asks:
        for _ in range(ask.count):
            fitting = [n for n in nodes if all(n.free.get(name, 0) >= amount for name, amount in ask.resources.items())]
            if not fitting:
                missing[ask.role] += 1
                continue
            node = min(fitting, key=lambda n: (n.offer.resources.get("GPU", 0), not n.up))
            node.up = True
            node.roles.add(ask.role)
            actors[ask.role][node.offer.name] += 1
            for name, amount in ask.resources.items():
                node.free[name] -= amount
    by_role = {ask.role: dict(Counter(n.offer.name for n in nodes if ask.role in n.roles)) for ask in asks}
    return Placing(
        nodes=dict(Counter(n.offer.name for n in nodes if n.up)),
        by_role=by_role,
        actors={role: dict(found) for role, found in actors.items()},
        missing=dict(missing),
    )


@dataclass(frozen=True, kw_only=True)
class Bill:
    """What nodes cost, in the currency of the prices."""

    per_hour: float | None
    """None: a price is missing."""
    run: float | None
    unpriced: tuple[str, ...]
    """Node types that are used and have no price."""


def bill(nodes: Mapping[str, int], prices: Mapping[str, float], *, hours: float | None) -> Bill:
    """Cost of all nodes together, an hour and for some hours."""
    unpriced = tuple(name for name, count in nodes.items() if count and name not in prices)
    if unpriced:
        return Bill(per_hour=None, run=None, unpriced=unpriced)
    per_hour = math.fsum(count * prices[name] for name, count in nodes.items())
    return Bill(per_hour=per_hour, run=None if hours is None else per_hour * hours, unpriced=())
