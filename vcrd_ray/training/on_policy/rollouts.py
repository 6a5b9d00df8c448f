"""One rank's new responses: asked for as soon as their version is out, fetched when their update comes. Knows no Ray.

Invariant: an update's requests are sent exactly once in a stretch of updates, before anything of it is asked for, and
all of them are of version `StalenessRule.version(update)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vcrd_ray.config.refresh import RefreshSection
from vcrd_ray.training.batches import Batches, draw
from vcrd_ray.training.on_policy.publisher import Publisher
from vcrd_ray.training.on_policy.requests import PolicyVersion, ResponseRequest, ResponseSource, Written
from vcrd_ray.training.on_policy.response_log import ResponseLog
from vcrd_ray.training.on_policy.staleness import StalenessRule
from vcrd_ray.training.signals import Future, done
from vcrd_ray.types import PairBatch, RolloutPair


@dataclass(frozen=True, kw_only=True)
class _Requested:
    """An update whose responses have been asked for."""

    batches: tuple[Future[PairBatch], ...]
    written: Future[Written] | None
    """None: nothing of it is regenerated."""


class OnPolicyRollouts:
    """Replaces student responses of the rollouts directory by those of later versions of the student."""

    def __init__(
        self,
        section: RefreshSection,
        batches: Batches,
        *,
        source: ResponseSource,
        publisher: Publisher,
        responses: ResponseLog,
    ) -> None:
        self.staleness = StalenessRule.of(section, epoch_updates=batches.epoch_updates)
        self._share = section.share
        self._batches = batches
        self._source = source
        self._publisher = publisher
        self._responses = responses
        self._versions: dict[int, PolicyVersion] = {}
        self._requested: dict[int, _Requested] = {}

    def begin(self, first: int) -> None:
        """Start, or go on, before this update."""
        self._responses.cut(first)
        self._versions = {number: self._publisher.find(number) for number in self.staleness.needed(first)}
        self._requested = {}

    def request(self, *, done: int, stop: int, threshold: float | None) -> None:
        """Ask for the responses of all updates before `stop` whose version is out, and that were not asked for yet."""
        for update in range(done, stop):
            if self.staleness.version(update) > done:
                return
            if update not in self._requested:
                self._requested[update] = self._ask(update, threshold)

    def take(self, update: int, micro: int) -> Future[PairBatch]:
        """A micro-batch with its responses, once they are written."""
        return self._requested[update].batches[micro]

    def finish(self, update: int, *, learnt: bool) -> Written | None:
        """An update is done: keep its responses, and publish a version if it is time."""
        self._publisher.note(learnt=learnt)
        written = self._requested.pop(update).written
        found = None if written is None else written.result()
        if found is not None:
            self._responses.write(update, self._batches.rank, version=found.version, rollouts=found.rollouts)
        done = update + 1
        if self.staleness.is_published(done, num_updates=self._batches.num_updates):
            self._versions[done] = self._publisher.publish(done)
        return found

    def kept(self, done: int, resumable: Iterable[int]) -> set[int]:
        """Versions that this run, or going on from a checkpoint, needs; others are forgotten."""
        kept = self.staleness.kept(done, resumable)
        self._versions = {number: ref for number, ref in self._versions.items() if number in kept}
        return kept

    def _ask(self, update: int, threshold: float | None) -> _Requested:
        version = self.staleness.version(update)
        micros = range(self._batches.order.num_micro_batches)
        batches = [self._batches.micro_batch(update, micro, threshold) for micro in micros]
        renewed = [self._renewed(batch, version) for batch in batches]
        batches = [self._with_earlier(batch, new, version) for batch, new in zip(batches, renewed, strict=True)]
        if not any(map(any, renewed)):
            return _Requested(batches=tuple(done(batch) for batch in batches), written=None)
        request = ResponseRequest(version=self._versions[version], batches=tuple(batches), renewed=tuple(renewed))
        answers, written = self._source.request(request)
        return _Requested(batches=tuple(answers), written=written)

    def _renewed(self, batch: PairBatch, version: int) -> tuple[bool, ...]:
        """Which responses are regenerated: those that take part, if a version is out, with the configured probability."""
        progress = batch.update / self._batches.num_updates
        match self._share:
            case "decreasing":
                share = 1 - progress
            case "increasing":
                share = progress
            case number:
                share = number
        drawn = draw(self._batches.seed, "refresh", batch.update, batch.pairs)
        return tuple(
            version > 0 and len(pair.student_ids) > 0 and u < share for pair, u in zip(batch.pairs, drawn, strict=True)
        )

    def _with_earlier(self, batch: PairBatch, renewed: tuple[bool, ...], version: int) -> PairBatch:
        """Those that are not regenerated, with the last response that was written for them."""
        pairs = (
            pair if new or version == 0 or len(pair.student_ids) == 0 else self._last(pair, batch.update, version)
            for pair, new in zip(batch.pairs, renewed, strict=True)
        )
        return replace(batch, pairs=tuple(pairs))

    def _last(self, pair: RolloutPair, update: int, version: int) -> RolloutPair:
        # Of updates done before the version was out: whatever the timing, all ranks have those on disk.
        for earlier, rank in self._batches.earlier_uses(pair, update):
            if earlier >= version:
                continue
            found = self._responses.find(pair.id, earlier, rank)
            if found is not None:
                return replace(pair, student_ids=found[0], student_version=found[1])
        return pair
