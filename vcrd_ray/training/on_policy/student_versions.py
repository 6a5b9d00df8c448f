"""What is done with published versions of the student in a run: responses written by them, and their validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vcrd_ray.data.accuracy import Accuracy
from vcrd_ray.training.on_policy.publisher import Publisher
from vcrd_ray.training.on_policy.rollouts import OnPolicyRollouts
from vcrd_ray.training.on_policy.validator import Validator
from vcrd_ray.types import UpdateReport


@dataclass(frozen=True, kw_only=True)
class StudentVersions:
    """One rank's publisher and who uses what it publishes."""

    publisher: Publisher
    on_policy: OnPolicyRollouts | None
    validator: Validator | None

    def begin(self, first_update: int) -> None:
        """Start, or go on, before this update."""
        if self.validator is not None:
            self.validator.begin(first_update)

    def after(self, report: UpdateReport, resumable: Callable[[], list[int]]) -> list[tuple[int, Accuracy]]:
        """An update is done; accuracies that have come in, with the updates that their versions had done.

        Args:
            resumable: updates that a run can go on from; their versions stay.
        """
        done = report.update + 1
        if self.on_policy is None:
            self.publisher.note(learnt=report.metrics["lr"] > 0 and report.metrics["grad_norm"] > 0)
        found = [] if self.validator is None else self.validator.after(done)
        kept = set() if self.on_policy is None else self.on_policy.kept(done, resumable())
        self.publisher.prune(kept | (set() if self.validator is None else self.validator.kept))
        return found

    def finish(self) -> list[tuple[int, Accuracy]]:
        """Wait for the accuracies that were asked for."""
        return [] if self.validator is None else self.validator.finish()
