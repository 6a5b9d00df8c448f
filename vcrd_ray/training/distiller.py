"""The update loop: carries out the plan of schedule.py on one rank. Knows the method's parts, but no Ray and no files.

Per micro-batch: the teacher's distribution and the student's states give each token its divergence and the gradient of
its state; the judge scores both proposals; the weights scale them in the backward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float

from vcrd_ray.config.stages import DistillSection
from vcrd_ray.errors import ModelError, NotFiniteError
from vcrd_ray.judges.requests import judged_at, one_per_token, quarantined_tokens, scored_proposals
from vcrd_ray.method.loss import distillation_loss
from vcrd_ray.method.objective_state import ObjectiveState
from vcrd_ray.method.schedule import Action, Op, plan
from vcrd_ray.method.weighting import Weights, token_weights
from vcrd_ray.models.backend import Backend
from vcrd_ray.models.batching import response_batch
from vcrd_ray.models.checkpoint_files import pad_id, special_ids
from vcrd_ray.models.finite import check_proposals, check_signals, check_update, is_finite
from vcrd_ray.training.batches import Batches
from vcrd_ray.training.judge_checks import JudgeBounds, SelfCheck
from vcrd_ray.training.micro_batch import Asked, Forwarded, student_proposals, teacher_probabilities
from vcrd_ray.training.objective_progress import Coefficients, ObjectiveProgress
from vcrd_ray.training.on_policy.rollouts import OnPolicyRollouts
from vcrd_ray.training.signals import SignalSource, done
from vcrd_ray.training.telemetry import JudgeTraffic, Telemetry, pick_decisions
from vcrd_ray.training.token_divergences import TokenDivergences
from vcrd_ray.training.trainer import Loop
from vcrd_ray.types import SIDES, Decision, JudgeScores, ScoredProposals, Side, UpdateReport


class Distiller(Loop):
    """One rank's distillation run."""

    def __init__(
        self,
        *,
        backend: Backend,
        teacher_head: Float[torch.Tensor, "v d"] | None,
        signals: SignalSource,
        batches: Batches,
        section: DistillSection,
        vocab_size: int,
        judge_bounds: JudgeBounds,
        on_policy: OnPolicyRollouts | None = None,
        take_judge_traffic: Callable[[], JudgeTraffic] = JudgeTraffic,
        span: Callable[[str], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Where the teacher's hidden states travel, `teacher_head` is needed. Put together by `assemble.make_distiller`.

        Args:
            on_policy: responses by later versions of the student; None: they are those of `batches`.
            take_judge_traffic: asked once an update; a judge in this process has none.
            span: held around each action of the schedule, by its name; for timelines.
        """
        _check_heads(vocab_size, teacher=teacher_head, student=backend.student.head)
        self._backend, self._student = backend, backend.student
        self._signals, self._batches, self._on_policy = signals, batches, on_policy
        self._section, self._objective = section, section.objective
        self._span, self._take_judge_traffic = span, take_judge_traffic
        self._losses = TokenDivergences(
            student=self._student,
            teacher_head=teacher_head,
            objective=section.objective,
            vocab_size=vocab_size,
            chunk_rows=section.chunk_rows,
            seed=batches.seed,
        )
        self._progress = ObjectiveProgress(section, batches, self._sum)
        self._coefficients = Coefficients(section, batches, on_policy, self._sum)
        self._bounds = judge_bounds
        self._judged = section.objective.needs_judge
        self._self_check = SelfCheck(
            signals, judge_bounds.self_check_tolerance, wanted=self._judged and backend.rank == 0
        )
        self._judged_at = judged_at(section.objective.weighting, self._student.tokenizer)
        self._special_ids = special_ids(self._student.tokenizer)
        self._padding = pad_id(self._student.tokenizer)
        self._vocab_size = vocab_size
        self._num_micro = batches.order.num_micro_batches
        self.num_updates = batches.num_updates

    @property
    def state(self) -> ObjectiveState:
        """What the objective has learnt so far."""
        return self._progress.state

    def record(self) -> dict[str, object]:
        """That state, as a checkpoint keeps it."""
        return self.state.to_record()

    def restore(self, record: dict[str, object]) -> None:
        self._progress.state = ObjectiveState.from_record(record)

    def facts(self) -> dict[str, object]:
        return {"self_check_difference": self._self_check.difference, "num_pairs": self._batches.num_given}

    def run(self, *, first_update: int, stop: int, on_update: Callable[[UpdateReport], None]) -> None:
        """Carry out updates [first_update, stop). `on_update` is called after each with the figures of all ranks.

        Raises:
            JudgeError: failed self-check, or too many scores that are no numbers.
            NotFiniteError: a loss, a gradient, or a signal of the teacher that is no number.
            SyncError: responses of another student than the one that trains.
        """
        if self._on_policy is not None:
            self._on_policy.begin(first_update)
        for first, last in self._progress.stretches(first_update, stop, self._validation_loss):
            self._run(first, last, on_update)

    def _run(self, first_update: int, stop: int, on_update: Callable[[UpdateReport], None]) -> None:
        asked: dict[tuple[int, int], Asked] = {}
        forwarded: dict[int, Forwarded] = {}
        telemetry, decisions, started = Telemetry(), list[Decision](), time.perf_counter()
        on_policy = self._on_policy
        operations = plan(
            first_update=first_update,
            num_updates=stop,
            num_micro=self._num_micro,
            overlap=self._section.overlap,
            prefetch=self._section.prefetch,
            **({} if on_policy is None else {"needs": on_policy.staleness.version}),
        )
        if on_policy is not None:
            on_policy.request(done=first_update, stop=stop, threshold=self._progress.threshold)
        for op in operations:
            with self._span(op.action.value):
                match op.action:
                    case Action.REQUEST_TEACHER:
                        asked[op.update, op.micro] = self._ask(op)
                    case Action.FORWARD:
                        forwarded[op.micro] = self._forward(asked.pop((op.update, op.micro)), telemetry)
                    case Action.BACKWARD:
                        decisions += self._backward(forwarded.pop(op.micro), telemetry)
                    case Action.STEP:
                        report = self._step(op.update, telemetry, decisions, started)
                        if on_policy is not None:
                            on_policy.request(done=op.update + 1, stop=stop, threshold=self._progress.threshold)
                        on_update(report)
                        telemetry, decisions, started = Telemetry(), [], time.perf_counter()

    def _ask(self, op: Op) -> Asked:
        offline = self._batches.micro_batch(op.update, op.micro, self._progress.threshold)
        batch = done(offline) if self._on_policy is None else self._on_policy.take(op.update, op.micro)
        teacher = self._signals.request_teacher(batch) if self._objective.needs_teacher else None
        scores = None
        if self._judged and offline.layout.takes_part("student"):
            assert teacher is not None
            scores = self._signals.request_student_prefix_scores(batch, teacher)
        return Asked(batch=batch, teacher=teacher, student_prefix_scores=scores)

    def _forward(self, asked: Asked, telemetry: Telemetry) -> Forwarded:
        with telemetry.waiting("wait_rollouts"):
            batch = asked.batch.result()
        hidden = self._backend.forward(response_batch(batch.pairs, self._padding, self._student.device))
        signals = None
        if asked.teacher is not None:
            with telemetry.waiting("wait_teacher"), self._span("wait_for_teacher"):
                signals = asked.teacher.result()
            check_signals(batch, signals)
            telemetry.seconds["teacher"] += signals.seconds
        telemetry.count_tokens(batch)
        fused = {
            side: self._losses.of_side(side, batch, hidden, signals, self._progress.state)
            for side in SIDES
            if batch.layout.takes_part(side)
        }
        scores = None
        if self._judged and "teacher" in fused:
            proposals = student_proposals(fused["teacher"])
            check_proposals(batch, "student", proposals, side="teacher", vocab_size=self._vocab_size)
            scores = self._signals.request_teacher_prefix_scores(batch, proposals)
            self._self_check.run(batch, "teacher", proposals)
        elif self._judged:
            assert signals is not None
            self._self_check.run(batch, "student", signals.student_prefix_proposals)
        return Forwarded(asked=asked, batch=batch, fused=fused, teacher_prefix_scores=scores)

    def _backward(self, forwarded: Forwarded, telemetry: Telemetry) -> list[Decision]:
        batch, divergences = forwarded.batch, forwarded.token_divergences()
        scores = self._wait_for_judge(forwarded, telemetry) if self._judged else {}
        scored = None
        if self._judged:
            scored = scored_proposals(
                batch,
                scores,
                teacher_proposals=forwarded.teacher_proposals(),
                student_proposals=forwarded.student_proposals(),
            )
        weights = self._weights(forwarded, scored, scores, telemetry)
        coefficients = self._coefficients.of(batch, self._progress.threshold)
        # Read back before the backward is begun: the device has nothing behind it then that this would wait for.
        values = divergences.detach().float().cpu().numpy()
        teacher = forwarded.asked.teacher
        self._losses.check(batch, values, None if teacher is None else teacher.result())
        self._backend.backward(distillation_loss(divergences, weights=weights.weight, coefficients=coefficients))
        telemetry.add(batch, weights, scored, divergence=values, coefficient=coefficients)
        if scored is None or self._backend.rank != 0:
            return []
        count = math.ceil(self._section.decisions_per_update / self._num_micro)
        return pick_decisions(batch, weights, scored, values, count=count, seed=self._batches.seed)

    def _weights(
        self,
        forwarded: Forwarded,
        scored: ScoredProposals | None,
        scores: dict[Side, JudgeScores],
        telemetry: Telemetry,
    ) -> Weights:
        batch = forwarded.batch
        weights = token_weights(
            self._objective.weighting,
            scored=scored,
            teacher_probabilities=teacher_probabilities(forwarded.fused.values()),
            num_tokens=batch.layout.num_tokens,
            special_ids=self._special_ids,
            ends_step=None if self._judged_at is None else np.isin(batch.layout.token_ids, list(self._judged_at)),
        )
        quarantined = quarantined_tokens(batch, scores)
        telemetry.counts["quarantined"] += int((weights.invalid & quarantined).sum())
        return replace(weights, invalid=weights.invalid & ~quarantined)

    def _wait_for_judge(self, forwarded: Forwarded, telemetry: Telemetry) -> dict[Side, JudgeScores]:
        """The scores of the sides that take part, with NaN for those of a wrong number."""
        asked = (forwarded.teacher_prefix_scores, forwarded.asked.student_prefix_scores)
        with telemetry.waiting("wait_judge"), self._span("wait_for_judge"):
            scores = {
                side: one_per_token(future.result(), forwarded.batch, side)
                for side, future in zip(SIDES, asked, strict=True)
                if future is not None
            }
        telemetry.seconds["judge"] += sum(s.seconds for s in scores.values())
        telemetry.counts["judge_tokens"] += sum(s.num_tokens for s in scores.values())
        return scores

    def _step(self, update: int, telemetry: Telemetry, decisions: list[Decision], started: float) -> UpdateReport:
        norm, lr = self._backend.step()
        check_update(update, self._student, grad_norm=norm)
        if self._on_policy is not None:
            written = self._on_policy.finish(update, learnt=lr > 0 and norm > 0)
            if written is not None:
                telemetry.add_written(written)
        traffic = self._take_judge_traffic()
        telemetry.counts["retries"] += traffic.retries
        telemetry.counts["replica_deaths"] += traffic.replica_deaths
        world_size = self._backend.world_size
        in_flight = np.zeros(world_size)
        in_flight[self._backend.rank] = traffic.max_in_flight
        total = self._sum(np.concatenate([in_flight, telemetry.to_vector()]))
        metrics = Telemetry.metrics(total[world_size:], world_size=world_size)
        metrics["judge/max_in_flight"] = float(total[:world_size].max())
        check_update(update, self._student, loss=metrics["loss"])
        self._bounds.check_share(update, metrics)
        metrics |= {"grad_norm": norm, "lr": lr, "time/update_s": time.perf_counter() - started}
        metrics |= self._progress.advance(update, loss=metrics["loss"], advantages=self._losses.advantages)
        return UpdateReport(update=update, metrics=metrics, decisions=tuple(decisions))

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean divergence a token on the held-out teacher responses, without dropout. Every rank does all of it."""
        total, count = 0.0, 0
        self._student.eval()
        for batch in self._batches.validation(self._section.micro_batch_size):
            signals = self._signals.request_teacher(done(batch)).result()
            check_signals(batch, signals)
            hidden = self._backend.forward(response_batch(batch.pairs, self._padding, self._student.device))
            fused = self._losses.of_side("teacher", batch, hidden, signals, self._progress.state, plain=True)
            self._losses.check(batch, fused.divergence.float().cpu().numpy(), signals)
            total, count = total + float(fused.divergence.sum()), count + batch.layout.num_tokens
        self._student.train()
        return float(self._sum(np.array([total / count]))[0] / self._backend.world_size)

    def _sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Elementwise over all ranks."""
        summed: npt.NDArray[np.float64] = (
            self._backend.sum_over_ranks(torch.from_numpy(values).to(self._student.device)).cpu().numpy()
        )
        return summed


def _check_heads(vocab_size: int, **heads: torch.Tensor | None) -> None:
    for name, head in heads.items():
        if head is not None and not is_finite(head):
            raise NotFiniteError(f"the {name}'s output head holds NaN or an infinity; check its checkpoint")
        if head is not None and len(head) < vocab_size:
            raise ModelError(
                f"the {name}'s output head has {len(head)} rows, the tokenizer {vocab_size} tokens;"
                " use the tokenizer that the model was trained with"
            )
