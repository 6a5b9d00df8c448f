"""Why actors and ranks wait for room, in words. Knows no models."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray.exceptions import RpcError

from actors.cluster_view import ClusterView, Shape, look
from actors.placement import placement_table
from vcrd_ray.config import Config

LOOK_EVERY_S = 10.0
"""Between two looks at the cluster by one who waits."""

_REMIND_S = 60.0
"""Between two lines that say the same."""


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """Actors of one pool, or ranks of one group, that are not ready."""

    what: str
    """Who, and how far they are."""
    count: int
    resources: Shape
    """What each asks for; nothing: not known."""
    gang: bool
    """Placed all together or not at all."""

    def unplaced(self, view: ClusterView) -> int:
        """How many have no place."""
        asked = view.bundles if self.gang else view.actors
        return min(self.count, sum(count for shape, count in asked if shape == self.resources))

    def line(self, view: ClusterView) -> str:
        """What they wait for, in a line."""
        unplaced = self.unplaced(view)
        if not unplaced:
            known = ": placed and loading" if self.resources else ""
            return f"waiting for {self.count} actors ({self.what}){known}"
        return f"waiting for {unplaced} x {_asked(self.resources)} ({self.what}): {why(self.resources, view)}"

    def line_now(self) -> str:
        """The same of the cluster as it is now."""
        try:
            return self.line(look())
        except RpcError as error:
            return f"waiting for {self.count} actors ({self.what}): the cluster does not answer: {error}"


def why_now(count: int, resources: Shape) -> str:
    """Why so many that ask for this have no place in the cluster as it is now."""
    try:
        reason = why(resources, look())
    except RpcError as error:
        reason = f"the cluster does not answer: {error}"
    return f"{count} x {_asked(resources)}: {reason}"


def _asked(resources: Shape) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in resources.items()) + "}"


def why(resources: Shape, view: ClusterView) -> str:
    """Why what asks for this has no place."""
    able = [node for node in view.nodes if _holds(node.total, resources)]
    if not able and resources in view.infeasible:
        return "no node type can give it"
    if view.starting:
        return "the autoscaler is starting " + ", ".join(f"{n} x {kind}" for kind, n in sorted(view.starting.items()))
    if view.failed:
        return "; ".join(f"the autoscaler could not start {kind}: {text}" for kind, text in sorted(view.failed.items()))
    if able:
        free = {name: sum(node.free.get(name, 0.0) for node in able) for name in resources}
        total = {name: sum(node.total[name] for node in able) for name in resources}
        left = ", ".join(f"{name} {free[name]:g} of {total[name]:g}" for name in resources)
        return f"the cluster is full: free {left}"
    lacking = [name for name in resources if all(node.total.get(name, 0.0) < resources[name] for node in view.nodes)]
    return f"no node offers {', '.join(f'{resources[name]:g} {name}' for name in lacking or resources)}" + (
        "" if lacking else " together"
    )


def _holds(offered: Shape, asked: Shape) -> bool:
    return all(offered.get(name, 0.0) >= amount for name, amount in asked.items())


def say(line: str) -> None:
    """Tell the person who waits."""
    print(line, file=sys.stderr, flush=True)


def explain_waiting_of(config: Config) -> list[Waiting]:
    """Everything of a distillation that may have to wait. Who asks for the same is told together."""
    merged: dict[tuple[bool, frozenset[tuple[str, float]]], Waiting] = {}
    for role, count, resources in placement_table(config):
        gang = role == "student"
        what, key = "student group" if gang else f"{role} pool", (gang, frozenset(resources.items()))
        if key in merged:
            what, count = f"{merged[key].what} or {what}", count + merged[key].count
        merged[key] = Waiting(what=what, count=count, resources=resources, gang=gang)
    return list(merged.values())


@contextmanager
def explain_waiting(
    config: Config, *, pools_too: Callable[[], bool] = lambda: True, every_s: float = LOOK_EVERY_S
) -> Iterator[None]:
    """Say on standard error which ranks and actors of a distillation wait for room and why, until the block ends.

    `pools_too`: whether pools are spoken of by now; while they start, `Pool.wait_ready` does that.
    """
    stop = threading.Event()
    asked = explain_waiting_of(config)

    def watch() -> None:
        said: dict[str, float] = {}
        while not stop.wait(every_s):
            try:
                view = look()
            except RpcError:
                continue  # the run itself says so, if that lasts
            spoken_of = [waiting for waiting in asked if waiting.gang or pools_too()]
            lines = [waiting.line(view) for waiting in spoken_of if waiting.unplaced(view)]
            now = time.monotonic()
            for line in lines:
                if now - said.get(line, -_REMIND_S) >= _REMIND_S:
                    say(line)
                    said[line] = now
            said = {line: at for line, at in said.items() if line in lines}

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
