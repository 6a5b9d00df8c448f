"""Notes that the driver and the ranks of one training leave for each other, wherever their nodes are.

They are kept in Ray's internal key-value store, which outlives every process but the head's.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from typing import Any, Literal

from ray.experimental import internal_kv

Name = Literal["pools", "progress", "saved", "stop", "told"]
_NAMES: tuple[Name, ...] = ("pools", "progress", "saved", "stop", "told")


@dataclass(frozen=True)
class ControlNotes:
    """Of one training. Pickles to every process of its cluster.

    pools: how their start ended. progress: metrics of the last update, and `num_updates`. saved: updates in the last
    complete checkpoint. stop: that the run has been told to end. told: what the person who waits should know.
    """

    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def leave(self, name: Name, value: Any) -> None:
        """Write a note, over the one of that name before."""
        internal_kv._internal_kv_put(self._at(name), json.dumps(value).encode())

    def read(self, name: Name) -> Any:
        """A note; None where there is none."""
        found = internal_kv._internal_kv_get(self._at(name))
        return None if found is None else json.loads(found)

    def remove(self) -> None:
        """Nobody will read them any more."""
        for name in _NAMES:
            internal_kv._internal_kv_del(self._at(name))

    def _at(self, name: Name) -> bytes:
        return f"vcrd_ray/training/{self.key}/{name}".encode()
