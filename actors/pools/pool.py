"""Pools of stateless actors, and how a run waits for them. Knows no models.

Which replica answers changes nothing in the answer. Ray restarts dead ones where there is room; during a distillation
their requests are sent to others meanwhile (dispatch.py), elsewhere they wait for the restart.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from actors.placement_wait import LOOK_EVERY_S, Waiting, say
from actors.pools.client import PoolClient
from actors.pools.transport import RayTransport
from vcrd_ray.errors import ScheduleError


class Pool:
    """Replicas of one actor. Pickles to other processes; the creator owns the actors.

    Work begins when `min_replicas` are ready. The others join whenever they are: `client` asks those that are ready.
    """

    def __init__(
        self,
        role: str,
        replicas: Sequence[Any],
        *,
        min_replicas: int | None = None,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """`resources`: what each replica asks of the cluster, for those who are told why one is waited for."""
        self.role = role
        self.replicas = list(replicas)
        self.min_replicas = len(self.replicas) if min_replicas is None else min_replicas
        self._resources = dict(resources or {})
        self._pids: dict[int, int] = {}
        self._next = 0

    def pick(self) -> Any:
        """The replica whose turn it is. For pools that were waited for as a whole."""
        replica = self.replicas[self._next % len(self.replicas)]
        self._next += 1
        return replica

    def client(self, *, max_crashes: int | None = None, cure: str = "look at its log") -> PoolClient:
        """This process's way to ask the replicas; for the arguments see `PoolClient`."""
        # Blame needs marks, and only judges leave any.
        transport = RayTransport(self.replicas, marked=max_crashes is not None)
        return PoolClient(
            transport,
            role=self.role,
            num_replicas=len(self.replicas),
            max_crashes=max_crashes,
            cure=cure,
        )

    def wait_ready(self, timeout_s: float) -> list[int]:
        """Process ids of `min_replicas` replicas or more, once their models are loaded. Says meanwhile why it waits.

        Raises:
            ScheduleError: they could not be placed or loaded in time, or one died at start.
        """
        asked = {replica.ready.remote(): index for index, replica in enumerate(self.replicas)}
        started = time.monotonic()
        while asked:
            enough = len(self._pids) >= self.min_replicas
            left = started + timeout_s - time.monotonic()
            done, _ = ray.wait(list(asked), timeout=0 if enough else max(0.0, min(left, LOOK_EVERY_S)))
            for ref in done:
                index = asked.pop(ref)
                try:
                    self._pids[index] = cast(int, ray.get(ref))
                except ActorUnavailableError:
                    # Its node went away: Ray starts it elsewhere.
                    asked[self.replicas[index].ready.remote()] = index
                except RayActorError as error:
                    raise ScheduleError(f"an actor of the {self.role} pool died at start: {error}") from error
            if enough and not done:
                break
            if not enough and not done:
                self._explain(gave_up_after_s=timeout_s if left <= 0 else None)
        return list(self._pids.values())

    def _explain(self, *, gave_up_after_s: float | None) -> None:
        state = f"{self.role} pool: {len(self._pids)} of {len(self.replicas)} ready"
        if self.min_replicas < len(self.replicas):
            state += f", {self.min_replicas} to begin"
        waiting = Waiting(what=state, count=len(self.replicas) - len(self._pids), resources=self._resources, gang=False)
        line = waiting.line_now()
        if gave_up_after_s is None:
            say(line)
            return
        raise ScheduleError(
            f"the {self.role} pool was not ready after {gave_up_after_s:g} s: {line}; ask for less, add nodes, or raise"
            " cluster.start_timeout_s"
        )

    def stop(self) -> None:
        """End the actors of this pool."""
        for replica in self.replicas:
            ray.kill(replica)
