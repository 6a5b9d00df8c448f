"""Which pairs make each micro-batch of a rank, and which of their responses take part. Knows no models and no Ray."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vcrd_ray.config.objective import AdaptiveMixing
from vcrd_ray.config.stages import DistillSection
from vcrd_ray.errors import DataError
from vcrd_ray.method.sampling import stable_hash, uniforms
from vcrd_ray.training.data_order import DataOrder
from vcrd_ray.types import PairBatch, RolloutPair


class Batches:
    """One rank's data, as the rollouts directory has it: a pure function of the seed and the objective's state."""

    def __init__(
        self, pairs: Sequence[RolloutPair], section: DistillSection, *, seed: int, rank: int, world_size: int
    ) -> None:
        """
        Raises:
            DataError: nothing is left to train on.
        """
        self.objective = section.objective
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_given = len(pairs)
        self.pairs, self.held_out = _split(pairs, section.objective.mixing)
        self.order = DataOrder(
            num_examples=len(self.pairs),
            batch_size=section.batch_size,
            micro_batch_size=section.micro_batch_size,
            ranks=world_size,
            seed=seed,
        )
        self.num_updates = self.order.num_updates(epochs=section.epochs, num_updates=section.num_updates)
        self.epoch_updates = max(1, len(self.pairs) // section.batch_size)
        self._index = {pair.id: index for index, pair in enumerate(self.pairs)}

    def micro_batch(self, update: int, micro: int, threshold: float | None) -> PairBatch:
        """This rank's pairs with the responses that take part.

        Args:
            threshold: probability that the student's response is the one that takes part; None: by the objective's lambdas.
        """
        indices = self.order.micro_batch(update, micro, self.rank)
        return PairBatch(update=update, micro=micro, pairs=self._with_sides(update, indices, threshold))

    def pairs_of(self, update: int, threshold: float | None) -> tuple[RolloutPair, ...]:
        """All pairs of an update, over all ranks."""
        return self._with_sides(update, self.order.order_of(update), threshold)

    def validation(self, size: int) -> Iterable[PairBatch]:
        """The teacher's responses of the pairs that are not trained on."""
        for micro, start in enumerate(range(0, len(self.held_out), size)):
            pairs = tuple(p.only("teacher") for p in self.held_out[start : start + size])
            yield PairBatch(update=0, micro=micro, pairs=pairs)

    def earlier_uses(self, pair: RolloutPair, update: int) -> Iterator[tuple[int, int]]:
        """(update, rank) of each use of a pair before an update, the last first."""
        return self.order.uses_before(update, self._index[pair.id])

    def _with_sides(self, update: int, indices: Sequence[int], threshold: float | None) -> tuple[RolloutPair, ...]:
        pairs = [self.pairs[i] for i in indices]
        if threshold is not None:
            drawn = draw(self.seed, "mixing", update, pairs)
            return tuple(p.only("student" if u < threshold else "teacher") for p, u in zip(pairs, drawn, strict=True))
        if self.objective.lambda_student == 0:
            return tuple(p.only("teacher") for p in pairs)
        if self.objective.lambda_teacher == 0:
            return tuple(p.only("student") for p in pairs)
        return tuple(pairs)


def draw(seed: int, stream: str, update: int, pairs: Sequence[RolloutPair]) -> list[float]:
    """One number in (0, 1) for each pair in an update."""
    keys = np.array([stable_hash(p.id) for p in pairs], dtype=np.uint64)
    positions = np.zeros(len(pairs), dtype=np.int64)
    numbers: list[float] = uniforms(
        seed=seed, stream=stream, update=update, rollout_keys=keys, positions=positions
    ).tolist()
    return numbers


def _split(
    pairs: Sequence[RolloutPair], mixing: AdaptiveMixing | None
) -> tuple[Sequence[RolloutPair], Sequence[RolloutPair]]:
    """Pairs to train on, and the last ones where some are held out for validation."""
    if mixing is None or mixing.held_out == 0:
        return pairs, ()
    if len(pairs) <= mixing.held_out:
        raise DataError(
            f"{len(pairs)} pairs, of which objective.mixing.validation_pairs {mixing.held_out} are held out:"
            " nothing is left to train on; make more rollouts or hold out fewer"
        )
    return pairs[: -mixing.held_out], pairs[-mixing.held_out :]
