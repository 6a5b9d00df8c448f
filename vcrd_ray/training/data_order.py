"""Which examples make which update: a pure function of (seed, number of examples, sizes). Knows nothing of the examples."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np


class DataOrder:
    """Shuffled epochs, one after the other, cut into updates, micro-batches and ranks.

    Every example is used once before any is used twice; an update may end one epoch and begin the next. The order of
    the examples of an update does not depend on ranks or micro-batch size.
    """

    def __init__(self, *, num_examples: int, batch_size: int, micro_batch_size: int, ranks: int, seed: int) -> None:
        self._num_examples = num_examples
        self._batch_size = batch_size
        self._micro_batch_size = micro_batch_size
        self._ranks = ranks
        self._seed = seed
        self._epochs: dict[int, np.ndarray] = {}
        self.num_micro_batches = batch_size // (micro_batch_size * ranks)

    def num_updates(self, *, epochs: float, num_updates: int | None) -> int:
        """Length of a run: as asked, else whole updates that fit in the epochs, at least one."""
        return num_updates or max(1, math.floor(epochs * self._num_examples / self._batch_size))

    def order_of(self, update: int) -> list[int]:
        """Indices of all examples of one update, over all ranks."""
        first = update * self._batch_size
        return [self._at(i) for i in range(first, first + self._batch_size)]

    def micro_batch(self, update: int, micro: int, rank: int) -> list[int]:
        """Indices of one micro-batch of one rank."""
        start = (micro * self._ranks + rank) * self._micro_batch_size
        return self.order_of(update)[start : start + self._micro_batch_size]

    def uses_before(self, update: int, example: int) -> Iterator[tuple[int, int]]:
        """(update, rank) of each earlier use of an example, the last first."""
        for epoch in reversed(range(update * self._batch_size // self._num_examples + 1)):
            at = epoch * self._num_examples + int(np.flatnonzero(self._epoch(epoch) == example)[0])
            earlier, offset = divmod(at, self._batch_size)
            if earlier < update:
                yield earlier, offset // self._micro_batch_size % self._ranks

    def _at(self, index: int) -> int:
        epoch, offset = divmod(index, self._num_examples)
        return int(self._epoch(epoch)[offset])

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if abs(e - epoch) <= 1}
            self._epochs[epoch] = np.random.default_rng([self._seed, epoch]).permutation(self._num_examples)
        return self._epochs[epoch]
