"""Which version of the student writes the responses of which update. Pure: no models, no Ray, no clock.

A version is named by the updates done when it was published. Update u learns from the responses of

    version(u) = max(0, floor((u - ahead) / every) * every)

so that its staleness u - version(u) lies in [ahead, ahead + every - 1] once the first versions are out, and a resumed or
slower run learns from the same responses. Nothing is asked of a version before it is published, and nothing that was
asked is thrown away: a bound by discarding what is too old would prefer short responses, which come back first.

Example, every 2 and ahead 1:  update   0 1 2 3 4 5 6
                               version  0 0 0 2 2 4 4
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vcrd_ray.config.refresh import RefreshSection


@dataclass(frozen=True, kw_only=True, slots=True)
class StalenessRule:
    """The rule of one run."""

    every: int
    ahead: int

    @classmethod
    def of(cls, section: RefreshSection, *, epoch_updates: int) -> StalenessRule:
        """The rule that the config asks for; `epoch_updates` are those of one pass over the pairs."""
        every = epoch_updates if section.every == "epoch" else section.every
        return cls(every=int(every), ahead=section.ahead)

    def version(self, update: int) -> int:
        """The version whose responses an update learns from."""
        return max(0, (update - self.ahead) // self.every * self.every)

    def is_published(self, done: int, *, num_updates: int) -> bool:
        """Whether a version is published when `done` updates are done: if some later update learns from it."""
        return done > 0 and done % self.every == 0 and done + self.ahead < num_updates

    def needed(self, done: int) -> set[int]:
        """Published versions that updates from `done` on still learn from, but for those yet to come; never version 0."""
        updates = range(done, done + self.ahead + self.every)
        return {self.version(update) for update in updates if 0 < self.version(update) <= done}

    def kept(self, done: int, resumable: Iterable[int]) -> set[int]:
        """Versions that must stay on disk: for the run as it is, and for going on from any of its checkpoints."""
        return set().union(*(self.needed(start) for start in (done, *resumable)))
