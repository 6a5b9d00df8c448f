"""What the objective learns while it is trained on, and the counts its loss is divided by. Asks no judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from vcrd_ray.config.stages import DistillSection
from vcrd_ray.method.loss import Denominators, lambdas, token_coefficients
from vcrd_ray.method.objective_state import ObjectiveState, is_adaptive
from vcrd_ray.training.batches import Batches
from vcrd_ray.training.on_policy.rollouts import OnPolicyRollouts
from vcrd_ray.types import FloatArray, PairBatch, RolloutPair

SumOverRanks = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


class ObjectiveProgress:
    """An objective's state from update to update. Invariant: the same on every rank after every update."""

    def __init__(self, section: DistillSection, batches: Batches, sum_over_ranks: SumOverRanks) -> None:
        self._objective = section.objective
        self._batches = batches
        self._sum = sum_over_ranks
        self.state = ObjectiveState.initial(section.objective)

    @property
    def threshold(self) -> float | None:
        """Probability of the student's response where one of the two takes part; None where both do."""
        return None if self.state.mixing is None else self.state.mixing.threshold

    def stretches(self, first: int, stop: int, validation_loss: Callable[[], float]) -> Iterator[tuple[int, int]]:
        """Updates between validations: what is asked ahead must not depend on a validation still to come."""
        mixing = self._objective.mixing
        if mixing is None or self.state.mixing is None or mixing.held_out == 0:
            yield first, stop
            return
        every = mixing.every or self._batches.epoch_updates
        while first < stop:
            if first % every == 0:
                after = self.state.mixing.after(validation_loss(), step=mixing.step, tolerance=mixing.tolerance)
                self.state = replace(self.state, mixing=after)
            last = min(stop, (first // every + 1) * every)
            yield first, last
            first = last

    def advance(self, update: int, *, loss: float, advantages: npt.NDArray[np.float64]) -> dict[str, float]:
        """Take the state past an update; its figures as they were during it.

        Args:
            advantages: sum and number of the owner's advantage on each side, of this rank. [2, 2]
        """
        figures: dict[str, float] = {}
        progress = update / self._batches.num_updates
        if self.state.taid is not None:
            figures["objective/taid_t"] = self.state.taid.t
        if self.state.mixing is not None:
            figures["objective/mixing_threshold"] = self.state.mixing.threshold
        if self._objective.gradual:
            figures["objective/lambda_student"] = lambdas(self._objective, progress=progress)[1]
        adaptive = is_adaptive(self._objective.on_teacher) or is_adaptive(self._objective.on_student)
        if adaptive and self.state.anchors is None:
            sums = self._sum(advantages.flatten()).reshape(2, 2)
            means = sums[:, 0] / np.maximum(sums[:, 1], 1)
            self.state = replace(self.state, anchors=(float(means[0]), float(means[1])))
        after = (update + 1) / self._batches.num_updates
        self.state = self.state.after_update(self._objective, loss=loss, progress=after)
        return figures


class Coefficients:
    """lambda over denominator of each token. Denominators count over all ranks and micro-batches of an update."""

    def __init__(
        self,
        section: DistillSection,
        batches: Batches,
        on_policy: OnPolicyRollouts | None,
        sum_over_ranks: SumOverRanks,
    ) -> None:
        self._section = section
        self._batches = batches
        self._on_policy = on_policy
        self._sum = sum_over_ranks
        self._counted: tuple[int, tuple[int, int]] = (-1, (0, 0))

    def of(self, batch: PairBatch, threshold: float | None) -> FloatArray:
        """Of every token of a micro-batch; `threshold` as in `ObjectiveProgress`. [N]"""
        objective = self._section.objective
        tokens = (0, 0)
        if objective.reduction == "global_token_mean":
            tokens = self._num_tokens(batch.update, threshold)
        return token_coefficients(
            batch.layout,
            lambdas=lambdas(objective, progress=batch.update / self._batches.num_updates),
            reduction=objective.reduction,
            denominators=Denominators(
                pairs=self._section.batch_size, teacher_tokens=tokens[0], student_tokens=tokens[1]
            ),
        )

    def _num_tokens(self, update: int, threshold: float | None) -> tuple[int, int]:
        """Response tokens of an update on teacher and on student prefixes, over all ranks."""
        if self._counted[0] != update:
            if self._on_policy is None:
                counts = _response_tokens(self._batches.pairs_of(update, threshold))
            else:
                # Other ranks' new responses are known to them alone.
                micros = range(self._batches.order.num_micro_batches)
                own = [self._on_policy.take(update, micro).result() for micro in micros]
                counts = self._sum(_response_tokens([pair for batch in own for pair in batch.pairs]))
            self._counted = (update, (int(counts[0]), int(counts[1])))
        teacher, student = self._counted[1]
        if threshold is not None:
            # One response a pair: one average over all of them, whoever wrote them.
            return teacher + student, teacher + student
        return teacher, student


def _response_tokens(pairs: Iterable[RolloutPair]) -> npt.NDArray[np.float64]:
    """Of the teacher and of the student. [2]"""
    lengths = [(len(pair.teacher_ids), len(pair.student_ids)) for pair in pairs]
    counts: npt.NDArray[np.float64] = np.asarray(lengths, dtype=np.float64).sum(axis=0)
    return counts
