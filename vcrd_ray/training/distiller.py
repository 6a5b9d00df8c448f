"""The update loop: carries out the plan of schedule.py on one rank. Knows the method's parts, but no Ray and no files.

Per micro-batch: the teacher's distribution and the student's states give each token its divergence and the gradient of
its state; the judge scores both proposals; the weights scale them in the backward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float

from vcrd_ray.config.models import TeacherSection
from vcrd_ray.config.stages import DistillSection
from vcrd_ray.errors import JudgeError, ModelError
from vcrd_ray.judges.requests import judged_at, one_per_token, quarantined_tokens, scored_proposals
from vcrd_ray.method.fused import FusedTokens
from vcrd_ray.method.loss import Denominators, distillation_loss, lambdas, token_coefficients
from vcrd_ray.method.objective_state import ObjectiveState, is_adaptive
from vcrd_ray.method.schedule import Action, Op, plan
from vcrd_ray.method.weighting import TeacherProbabilities, token_weights
from vcrd_ray.models.backend import Backend
from vcrd_ray.models.batching import response_batch
from vcrd_ray.models.checkpoint_files import pad_id, special_ids
from vcrd_ray.training.batches import Batches
from vcrd_ray.training.on_policy.rollouts import OnPolicyRollouts
from vcrd_ray.training.signals import Future, SignalSource, done
from vcrd_ray.training.telemetry import JudgeTraffic, Telemetry, pick_decisions
from vcrd_ray.training.token_divergences import TokenDivergences
from vcrd_ray.types import (
    SIDES,
    Decision,
    JudgeScores,
    PairBatch,
    RolloutPair,
    Side,
    TeacherRequest,
    TeacherSignals,
    UpdateReport,
)


def teacher_request(section: DistillSection, teacher: TeacherSection, *, seed: int) -> TeacherRequest:
    """What a run of this objective asks of the teacher."""
    return TeacherRequest(
        transport=teacher.transport, top_k=teacher.top_k, propose=section.objective.needs_judge, seed=seed
    )


@dataclass(frozen=True, kw_only=True)
class JudgeBounds:
    """What a judge may get wrong before the run stops."""

    max_invalid_share: float
    self_check_tolerance: float | None
    """None: the judge scores proposals one by one, there is nothing to compare."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A micro-batch whose teacher signals have been asked for."""

    batch: Future[PairBatch]
    teacher: Future[TeacherSignals] | None
    student_prefix_scores: Future[JudgeScores] | None


@dataclass(frozen=True, kw_only=True)
class _Forwarded:
    """A micro-batch whose graph waits for its weights."""

    asked: _Asked
    batch: PairBatch
    fused: dict[Side, FusedTokens]
    """In token order; a side that takes no part is missing."""
    teacher_prefix_scores: Future[JudgeScores] | None


class Distiller:
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
        """Where the teacher's hidden states travel, `teacher_head` is needed.

        Args:
            on_policy: writes student responses anew; None: they are those of `batches`.
            take_judge_traffic: asked once an update; a judge in this process has none.
            span: held around each action of the schedule, by its name; for timelines.
        """
        for name, head in (("teacher", teacher_head), ("student", backend.student.head)):
            if head is not None and len(head) < vocab_size:
                raise ModelError(
                    f"the {name}'s output head has {len(head)} rows, the tokenizer {vocab_size} tokens;"
                    " use the tokenizer that the model was trained with"
                )
        self._backend = backend
        self._span = span
        self._student = backend.student
        self._signals = signals
        self._section = section
        self._objective = section.objective
        self._batches = batches
        self._on_policy = on_policy
        self._losses = TokenDivergences(
            student=self._student,
            teacher_head=teacher_head,
            objective=section.objective,
            vocab_size=vocab_size,
            chunk_rows=section.chunk_rows,
            seed=batches.seed,
        )
        self._bounds = judge_bounds
        self._take_judge_traffic = take_judge_traffic
        self._special_ids = special_ids(self._student.tokenizer)
        self._padding = pad_id(self._student.tokenizer)
        self._judged = section.objective.needs_judge
        self._judged_at = judged_at(section.objective.weighting, self._student.tokenizer)
        self.num_updates = batches.num_updates
        self._num_micro = batches.order.num_micro_batches
        self.state = ObjectiveState.initial(section.objective)
        self._checked = not (self._judged and judge_bounds.self_check_tolerance is not None and backend.rank == 0)
        self.self_check_difference: float | None = None
        self._counted: tuple[int, tuple[int, int]] = (-1, (0, 0))

    def run(self, *, first_update: int, stop: int, on_update: Callable[[UpdateReport], None]) -> None:
        """Carry out updates [first_update, stop). `on_update` is called after each with the figures of all ranks.

        Raises:
            JudgeError: failed self-check, or too many scores that are no numbers.
            SyncError: responses of another student than the one that trains.
        """
        if self._on_policy is not None:
            self._on_policy.begin(first_update)
        for first, last in self._stretches(first_update, stop):
            self._run(first, last, on_update)

    def _stretches(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Updates between validations: what is asked ahead must not depend on a validation still to come."""
        mixing = self._objective.mixing
        if mixing is None or self.state.mixing is None or mixing.held_out == 0:
            yield first, stop
            return
        every = mixing.every or self._batches.epoch_updates
        while first < stop:
            if first % every == 0:
                after = self.state.mixing.after(self._validation_loss(), step=mixing.step, tolerance=mixing.tolerance)
                self.state = replace(self.state, mixing=after)
            last = min(stop, (first // every + 1) * every)
            yield first, last
            first = last

    def _run(self, first_update: int, stop: int, on_update: Callable[[UpdateReport], None]) -> None:
        asked: dict[tuple[int, int], _Asked] = {}
        forwarded: dict[int, _Forwarded] = {}
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
            on_policy.order(done=first_update, stop=stop, threshold=self._threshold)
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
                            on_policy.order(done=op.update + 1, stop=stop, threshold=self._threshold)
                        on_update(report)
                        telemetry, decisions, started = Telemetry(), [], time.perf_counter()

    @property
    def _threshold(self) -> float | None:
        """Probability of the student's response where one of the two takes part."""
        return None if self.state.mixing is None else self.state.mixing.threshold

    def _ask(self, op: Op) -> _Asked:
        offline = self._batches.micro_batch(op.update, op.micro, self._threshold)
        batch = done(offline) if self._on_policy is None else self._on_policy.take(op.update, op.micro)
        teacher = self._signals.request_teacher(batch) if self._objective.needs_teacher else None
        scores = None
        if self._judged and offline.layout.takes_part("student"):
            assert teacher is not None
            scores = self._signals.request_student_prefix_scores(batch, teacher)
        return _Asked(batch=batch, teacher=teacher, student_prefix_scores=scores)

    def _forward(self, asked: _Asked, telemetry: Telemetry) -> _Forwarded:
        waiting = time.perf_counter()
        batch = asked.batch.result()
        telemetry.times["wait_rollouts_s"] += time.perf_counter() - waiting
        layout = batch.layout
        hidden = self._backend.forward(response_batch(batch.pairs, self._padding, self._student.device))
        signals = None
        if asked.teacher is not None:
            waiting = time.perf_counter()
            with self._span("wait_for_teacher"):
                signals = asked.teacher.result()
            telemetry.times["wait_teacher_s"] += time.perf_counter() - waiting
            telemetry.times["teacher_s"] += signals.seconds
        prompts = sum(len(p.prompt_ids) * int((len(p.teacher_ids) > 0) + (len(p.student_ids) > 0)) for p in batch.pairs)
        telemetry.times["tokens"] += int(layout.lengths.sum()) + prompts
        fused = {
            side: self._losses.of_side(side, batch, hidden, signals, self.state)
            for side in SIDES
            if layout.takes_part(side)
        }
        scores = None
        if self._judged and "teacher" in fused:
            proposals = _proposals(fused["teacher"])
            scores = self._signals.request_teacher_prefix_scores(batch, proposals)
            self._self_check(batch, "teacher", proposals)
        elif self._judged:
            assert signals is not None
            self._self_check(batch, "student", signals.student_prefix_proposals)
        return _Forwarded(asked=asked, batch=batch, fused=fused, teacher_prefix_scores=scores)

    def _self_check(self, batch: PairBatch, side: Side, proposals: npt.NDArray[np.int32]) -> None:
        tolerance = self._bounds.self_check_tolerance
        if self._checked or tolerance is None:
            return
        self._checked = True
        self.self_check_difference = self._signals.self_check(batch, side, proposals)
        if not self.self_check_difference <= tolerance:
            raise JudgeError(
                f"packed and separate judging differ by {self.self_check_difference:.3g} in logit on the first batch, more than"
                f" {tolerance} (judge.self_check_tolerance); use judge.dtype float32, or report this model's attention"
            )

    def _backward(self, done: _Forwarded, telemetry: Telemetry) -> list[Decision]:
        batch = done.batch
        scores = self._wait_for_judge(done, telemetry) if self._judged else {}
        scored = None
        if self._judged:
            assert done.asked.teacher is not None
            scored = scored_proposals(
                batch,
                scores,
                teacher_proposals=done.asked.teacher.result().student_prefix_proposals,
                student_proposals=_proposals(done.fused["teacher"]) if "teacher" in scores else None,
            )
        weights = token_weights(
            self._objective.weighting,
            scored=scored,
            teacher_probabilities=_teacher_probabilities(list(done.fused.values())),
            num_tokens=batch.layout.num_tokens,
            special_ids=self._special_ids,
            ends_step=None if self._judged_at is None else np.isin(batch.layout.token_ids, list(self._judged_at)),
        )
        aside = quarantined_tokens(batch, scores)
        telemetry.times["quarantined"] += int((weights.invalid & aside).sum())
        weights = replace(weights, invalid=weights.invalid & ~aside)
        coefficient = self._coefficients(batch)
        divergences = torch.cat([fused.divergence for fused in done.fused.values()])
        self._backend.backward(distillation_loss(divergences, weights=weights.weight, coefficients=coefficient))
        divergence = divergences.detach().float().cpu().numpy()
        telemetry.add(batch, weights, scored, divergence=divergence, coefficient=coefficient)
        if scored is None or self._backend.rank != 0:
            return []
        count = math.ceil(self._section.decisions_per_update / self._num_micro)
        return pick_decisions(batch, weights, scored, divergence, count=count, seed=self._batches.seed)

    def _coefficients(self, batch: PairBatch) -> npt.NDArray[np.float32]:
        tokens = self._num_tokens(batch.update) if self._objective.reduction == "global_token_mean" else (0, 0)
        return token_coefficients(
            batch.layout,
            lambdas=lambdas(self._objective, progress=batch.update / self.num_updates),
            reduction=self._objective.reduction,
            denominators=Denominators(
                pairs=self._section.batch_size, teacher_tokens=tokens[0], student_tokens=tokens[1]
            ),
        )

    def _num_tokens(self, update: int) -> tuple[int, int]:
        """Response tokens of an update on teacher and on student prefixes, over all ranks."""
        if self._counted[0] != update:
            if self._on_policy is None:
                counts = _response_tokens(self._batches.pairs_of(update, self._threshold))
            else:
                # Other ranks' new responses are known to them alone.
                own = [self._on_policy.take(update, micro).result() for micro in range(self._num_micro)]
                counts = self._sum(_response_tokens([pair for batch in own for pair in batch.pairs]))
            self._counted = (update, (int(counts[0]), int(counts[1])))
        teacher, student = self._counted[1]
        if self.state.mixing is not None:
            # One response a pair: one average over all of them, whoever wrote them.
            return teacher + student, teacher + student
        return teacher, student

    def _wait_for_judge(self, done: _Forwarded, telemetry: Telemetry) -> dict[Side, JudgeScores]:
        """The scores of the sides that take part, with NaN for those of a wrong number."""
        waiting = time.perf_counter()
        with self._span("wait_for_judge"):
            scores = {
                side: one_per_token(pending.result(), done.batch, side)
                for side, pending in zip(
                    SIDES, (done.teacher_prefix_scores, done.asked.student_prefix_scores), strict=True
                )
                if pending is not None
            }
        telemetry.times["wait_judge_s"] += time.perf_counter() - waiting
        telemetry.times["judge_s"] += sum(s.seconds for s in scores.values())
        telemetry.times["judge_tokens"] += sum(s.num_tokens for s in scores.values())
        return scores

    def _step(self, update: int, telemetry: Telemetry, decisions: list[Decision], started: float) -> UpdateReport:
        norm, lr = self._backend.step()
        if self._on_policy is not None:
            written = self._on_policy.finish(update, learnt=lr > 0 and norm > 0)
            if written is not None:
                telemetry.add_written(written)
        traffic = self._take_judge_traffic()
        telemetry.times["retries"] += traffic.retries
        telemetry.times["replica_deaths"] += traffic.replica_deaths
        world_size = self._backend.world_size
        in_flight = np.zeros(world_size)
        in_flight[self._backend.rank] = traffic.max_in_flight
        total = self._sum(np.concatenate([in_flight, telemetry.to_vector()]))
        metrics = Telemetry.metrics(total[world_size:], world_size=world_size)
        metrics["judge/max_in_flight"] = float(total[:world_size].max())
        judged, invalid = metrics["judge/judged_rows"], metrics["judge/invalid_rows"]
        if invalid > self._bounds.max_invalid_share * (judged + invalid):
            raise JudgeError(
                f"update {update}: {invalid:.0f} of {judged + invalid:.0f} scores are NaN, infinite or missing, more than"
                f" judge.max_invalid_share {self._bounds.max_invalid_share}; check the judge's checkpoint and dtype"
            )
        metrics |= {"grad_norm": norm, "lr": lr, "time/update_s": time.perf_counter() - started}
        metrics |= self._advance(update, loss=metrics["loss"])
        return UpdateReport(update=update, metrics=metrics, decisions=tuple(decisions))

    def _advance(self, update: int, *, loss: float) -> dict[str, float]:
        """Take the objective's state past an update; its figures as they were during it."""
        figures: dict[str, float] = {}
        if self.state.taid is not None:
            figures["objective/taid_t"] = self.state.taid.t
        if self.state.mixing is not None:
            figures["objective/mixing_threshold"] = self.state.mixing.threshold
        if self._objective.gradual:
            figures["objective/lambda_student"] = lambdas(self._objective, progress=update / self.num_updates)[1]
        adaptive = is_adaptive(self._objective.on_teacher) or is_adaptive(self._objective.on_student)
        if adaptive and self.state.anchors is None:
            sums = self._sum(self._losses.advantages.flatten()).reshape(2, 2)
            means = sums[:, 0] / np.maximum(sums[:, 1], 1)
            self.state = replace(self.state, anchors=(float(means[0]), float(means[1])))
        self.state = self.state.after_update(self._objective, loss=loss, progress=(update + 1) / self.num_updates)
        return figures

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean divergence a token on the held-out teacher responses, without dropout. Every rank does all of it."""
        total, count = 0.0, 0
        self._student.eval()
        for batch in self._batches.validation(self._section.micro_batch_size):
            signals = self._signals.request_teacher(done(batch)).result()
            hidden = self._backend.forward(response_batch(batch.pairs, self._padding, self._student.device))
            fused = self._losses.of_side("teacher", batch, hidden, signals, self.state, plain=True)
            total, count = total + float(fused.divergence.sum()), count + batch.layout.num_tokens
        self._student.train()
        return float(self._sum(np.array([total / count]))[0] / self._backend.world_size)

    def _sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Elementwise over all ranks."""
        summed: npt.NDArray[np.float64] = (
            self._backend.sum_over_ranks(torch.from_numpy(values).to(self._student.device)).cpu().numpy()
        )
        return summed


def _response_tokens(pairs: Iterable[RolloutPair]) -> npt.NDArray[np.float64]:
    """Of the teacher and of the student. [2]"""
    lengths = [(len(pair.teacher_ids), len(pair.student_ids)) for pair in pairs]
    counts: npt.NDArray[np.float64] = np.asarray(lengths, dtype=np.float64).sum(axis=0)
    return counts


def _teacher_probabilities(fused: Sequence[FusedTokens]) -> TeacherProbabilities | None:
    """Of all sides, in token order; None where no rule asked for them."""
    parts = [(f.teacher_prob_of_student_argmax, f.teacher_collision) for f in fused]
    if any(part is None for pair in parts for part in pair):
        return None
    of_argmax, collision = (
        torch.cat([part for part in side if part is not None]).float().cpu().numpy()
        for side in zip(*parts, strict=True)
    )
    return TeacherProbabilities(of_student_argmax=of_argmax, collision=collision)


def _proposals(fused: FusedTokens) -> npt.NDArray[np.int32]:
    assert fused.student_proposal is not None
    return fused.student_proposal.cpu().numpy().astype(np.int32)
