"""The update loop: carries out the plan of schedule.py on one rank. Knows the method's parts, but no Ray and no files.

Per micro-batch: the teacher's states and the student's give each row its divergence and its gradient row; the judge
scores both proposals; the weights scale the rows in the backward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float

from vcrd_ray.analysis.telemetry import Telemetry, pick_decisions
from vcrd_ray.backends import Backend
from vcrd_ray.config import DistillSection, ObjectiveSection, RatioWeighting, TeacherProbWeighting
from vcrd_ray.data.order import DataOrder
from vcrd_ray.divergences import Divergence, SkewedKL, SkewedReverseKL
from vcrd_ray.engines.hf import pair_keys
from vcrd_ray.errors import JudgeError, ModelError
from vcrd_ray.fused import FusedRows, fused_divergence
from vcrd_ray.models import pad_id, special_ids
from vcrd_ray.objectives import row_coefficients
from vcrd_ray.sampling import uniforms
from vcrd_ray.schedule import Action, Op, plan
from vcrd_ray.sequences import response_batch
from vcrd_ray.signals import Pending, SignalSource
from vcrd_ray.types import Decision, JudgeScores, PairBatch, RolloutPair, TeacherSignals, UpdateReport, Validity
from vcrd_ray.weighting import Weights, ratio_weights, teacher_prob_weights, uniform_weights
from vcrd_ray.wire import from_wire


@dataclass(frozen=True, kw_only=True)
class JudgeBounds:
    """What a judge may get wrong before the run stops."""

    max_invalid_share: float
    self_check_tolerance: float | None
    """None: the judge scores proposals one by one, there is nothing to compare."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A micro-batch whose teacher signals have been asked for."""

    batch: PairBatch
    teacher: Pending[TeacherSignals]
    student_prefix_scores: Pending[JudgeScores] | None


@dataclass(frozen=True, kw_only=True)
class _Forwarded:
    """A micro-batch whose graph waits for its weights."""

    asked: _Asked
    on_teacher: FusedRows
    on_student: FusedRows
    student_proposals: npt.NDArray[np.int32]
    teacher_prefix_scores: Pending[JudgeScores] | None


class Distiller:
    """One rank's distillation run."""

    def __init__(
        self,
        *,
        backend: Backend,
        teacher_head: Float[torch.Tensor, "v d"],
        signals: SignalSource,
        pairs: Sequence[RolloutPair],
        section: DistillSection,
        seed: int,
        vocab_size: int,
        judge_bounds: JudgeBounds,
    ) -> None:
        for name, head in (("teacher", teacher_head), ("student", backend.student.head)):
            if len(head) < vocab_size:
                raise ModelError(
                    f"the {name}'s output head has {len(head)} rows, the tokenizer {vocab_size} tokens;"
                    " use the tokenizer that the model was trained with"
                )
        self._backend = backend
        self._student = backend.student
        self._teacher_head = teacher_head
        self._signals = signals
        self._pairs = pairs
        self._section = section
        self._objective: ObjectiveSection = section.objective
        self._seed = seed
        self._vocab_size = vocab_size
        self._bounds = judge_bounds
        self._special_ids = special_ids(self._student.tokenizer)
        self._padding = pad_id(self._student.tokenizer)
        self._judged = isinstance(section.objective.weighting, RatioWeighting)
        self.order = DataOrder(
            num_examples=len(pairs),
            batch_size=section.batch_size,
            micro_batch_size=section.micro_batch_size,
            ranks=backend.world_size,
            seed=seed,
        )
        self.num_updates = self.order.num_updates(epochs=section.epochs, num_updates=section.num_updates)
        self._checked = not (self._judged and judge_bounds.self_check_tolerance is not None and backend.rank == 0)
        self.self_check_difference: float | None = None

    def run(self, *, first_update: int, stop: int, on_update: Callable[[UpdateReport], None]) -> None:
        """Carry out updates [first_update, stop). `on_update` is called after each with the figures of all ranks.

        Raises:
            JudgeError: failed self-check, or too many scores that are no numbers.
        """
        asked: dict[tuple[int, int], _Asked] = {}
        forwarded: dict[int, _Forwarded] = {}
        telemetry, decisions, started = Telemetry(), list[Decision](), time.perf_counter()
        operations = plan(
            first_update=first_update,
            num_updates=stop,
            num_micro=self.order.num_micro_batches,
            overlap=self._section.overlap,
            prefetch=self._section.prefetch,
        )
        for op in operations:
            match op.action:
                case Action.REQUEST_TEACHER:
                    asked[op.update, op.micro] = self._ask(op)
                case Action.FORWARD:
                    forwarded[op.micro] = self._forward(asked.pop((op.update, op.micro)), telemetry)
                case Action.BACKWARD:
                    decisions += self._backward(forwarded.pop(op.micro), telemetry)
                case Action.STEP:
                    on_update(self._step(op.update, telemetry, decisions, started))
                    telemetry, decisions, started = Telemetry(), [], time.perf_counter()

    def _ask(self, op: Op) -> _Asked:
        indices = self.order.micro_batch(op.update, op.micro, self._backend.rank)
        batch = PairBatch(update=op.update, micro=op.micro, pairs=tuple(self._pairs[i] for i in indices))
        teacher = self._signals.request_teacher(batch)
        scores = self._signals.request_student_prefix_scores(batch, teacher) if self._judged else None
        return _Asked(batch=batch, teacher=teacher, student_prefix_scores=scores)

    def _forward(self, asked: _Asked, telemetry: Telemetry) -> _Forwarded:
        batch, rows = asked.batch, asked.batch.rows
        device = self._student.device
        hidden = self._backend.forward(response_batch(batch.pairs, self._padding, device))
        waiting = time.perf_counter()
        signals = asked.teacher.result()
        telemetry.times["wait_teacher_s"] += time.perf_counter() - waiting
        telemetry.times["teacher_s"] += signals.seconds
        telemetry.times["tokens"] += int(rows.lengths.sum()) + 2 * sum(len(p.prompt_ids) for p in batch.pairs)
        teacher_hidden = from_wire(signals.hidden, device)
        cut = rows.num_teacher_rows
        uniform = torch.from_numpy(
            uniforms(
                seed=self._seed,
                stream="student-proposal",
                update=batch.update,
                rollout_keys=pair_keys(batch)[:cut],
                positions=rows.position[:cut],
            )
        ).to(device)
        objective = self._objective
        on_teacher = self._fused(SkewedKL(alpha=objective.alpha), hidden[:cut], teacher_hidden[:cut], uniform)
        on_student = self._fused(
            SkewedReverseKL(alpha=objective.alpha, detach_mixture=objective.detach_mixture),
            hidden[cut:],
            teacher_hidden[cut:],
            None,
        )
        assert on_teacher.student_proposal is not None
        proposals = on_teacher.student_proposal.cpu().numpy().astype(np.int32)
        scores = None
        if self._judged:
            scores = self._signals.request_teacher_prefix_scores(batch, proposals)
            self._self_check(batch, proposals)
        return _Forwarded(
            asked=asked,
            on_teacher=on_teacher,
            on_student=on_student,
            student_proposals=proposals,
            teacher_prefix_scores=scores,
        )

    def _fused(
        self, divergence: Divergence, hidden: torch.Tensor, teacher_hidden: torch.Tensor, uniform: torch.Tensor | None
    ) -> FusedRows:
        weighting = self._objective.weighting
        return fused_divergence(
            divergence=divergence,
            student_hidden=hidden,
            student_head=self._student.head,
            teacher_hidden=teacher_hidden,
            teacher_head=self._teacher_head,
            vocab_size=self._vocab_size,
            chunk_rows=self._section.chunk_rows,
            uniform=uniform,
            teacher_probability_top_k=weighting.top_k if isinstance(weighting, TeacherProbWeighting) else None,
        )

    def _self_check(self, batch: PairBatch, proposals: npt.NDArray[np.int32]) -> None:
        tolerance = self._bounds.self_check_tolerance
        if self._checked or tolerance is None:
            return
        self._checked = True
        self.self_check_difference = self._signals.self_check(batch, proposals)
        if not self.self_check_difference <= tolerance:
            raise JudgeError(
                f"packed and separate judging differ by {self.self_check_difference:.3g} in logit on the first batch, more than"
                f" judge.self_check_tolerance {tolerance}; use judge.dtype float32, or report this model's attention"
            )

    def _backward(self, done: _Forwarded, telemetry: Telemetry) -> list[Decision]:
        batch = done.asked.batch
        validity = self._validity(done, telemetry) if self._judged else None
        weights = self._weights(done, validity)
        update_pairs = [self._pairs[i] for i in self.order.update(batch.update)]
        coefficient = row_coefficients(
            batch.rows,
            lambda_teacher=self._objective.lambda_teacher,
            lambda_student=self._objective.lambda_student,
            reduction=self._objective.reduction,
            num_pairs=len(update_pairs),
            num_teacher_tokens=sum(len(p.teacher_ids) for p in update_pairs),
            num_student_tokens=sum(len(p.student_ids) for p in update_pairs),
        )
        rows = torch.cat([done.on_teacher.divergence, done.on_student.divergence])
        factor = torch.from_numpy(coefficient * weights.weight).to(rows.device)
        self._backend.backward((factor * rows).sum())
        divergence = rows.detach().float().cpu().numpy()
        telemetry.add(batch, weights, validity, divergence=divergence, coefficient=coefficient)
        if validity is None or self._backend.rank != 0:
            return []
        count = math.ceil(self._section.decisions_per_update / self.order.num_micro_batches)
        return pick_decisions(batch, weights, validity, divergence, count=count, seed=self._seed)

    def _validity(self, done: _Forwarded, telemetry: Telemetry) -> Validity:
        assert done.teacher_prefix_scores is not None and done.asked.student_prefix_scores is not None
        waiting = time.perf_counter()
        on_teacher = done.teacher_prefix_scores.result()
        on_student = done.asked.student_prefix_scores.result()
        telemetry.times["wait_judge_s"] += time.perf_counter() - waiting
        telemetry.times["judge_s"] += on_teacher.seconds + on_student.seconds
        telemetry.times["judge_tokens"] += on_teacher.num_tokens + on_student.num_tokens
        batch = done.asked.batch
        cut = batch.rows.num_teacher_rows
        teacher_proposals = done.asked.teacher.result().student_prefix_proposals
        # The owner of a rollout proposes its own next token; the other model proposes a fresh sample.
        return Validity(
            teacher_proposal=np.concatenate([batch.rows.tokens[:cut], teacher_proposals]),
            student_proposal=np.concatenate([done.student_proposals, batch.rows.tokens[cut:]]),
            teacher_logit=np.concatenate([on_teacher.trunk_logit, on_student.candidate_logit]),
            student_logit=np.concatenate([on_teacher.candidate_logit, on_student.trunk_logit]),
        )

    def _weights(self, done: _Forwarded, validity: Validity | None) -> Weights:
        weighting = self._objective.weighting
        if isinstance(weighting, RatioWeighting):
            assert validity is not None
            return ratio_weights(validity, special_ids=self._special_ids, eps=weighting.eps, w_max=weighting.w_max)
        if isinstance(weighting, TeacherProbWeighting):
            both = (done.on_teacher, done.on_student)
            return teacher_prob_weights(
                _joined([r.teacher_prob_of_student_argmax for r in both]),
                _joined([r.teacher_collision for r in both]),
                gamma=weighting.gamma,
                clamp=weighting.clamp,
                eps=weighting.eps,
            )
        return uniform_weights(done.asked.batch.rows.num_rows)

    def _step(self, update: int, telemetry: Telemetry, decisions: list[Decision], started: float) -> UpdateReport:
        norm, lr = self._backend.step()
        total = self._backend.sum_over_ranks(torch.from_numpy(telemetry.to_vector()).to(self._student.device))
        metrics = Telemetry.metrics(total.cpu().numpy(), world_size=self._backend.world_size)
        judged, invalid = metrics["judge/judged_rows"], metrics["judge/invalid_rows"]
        if invalid > self._bounds.max_invalid_share * (judged + invalid):
            raise JudgeError(
                f"update {update}: {invalid:.0f} of {judged + invalid:.0f} scores are NaN or infinite, more than"
                f" judge.max_invalid_share {self._bounds.max_invalid_share}; check the judge's checkpoint and dtype"
            )
        metrics |= {"grad_norm": norm, "lr": lr, "time/update_s": time.perf_counter() - started}
        return UpdateReport(update=update, metrics=metrics, decisions=tuple(decisions))


def _joined(parts: list[torch.Tensor | None]) -> npt.NDArray[np.float32]:
    tensors = [part for part in parts if part is not None]
    joined: npt.NDArray[np.float32] = torch.cat(tensors).float().cpu().numpy()
    return joined
