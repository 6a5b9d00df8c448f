"""One side of a micro-batch -> the divergence of its tokens: the objective's terms on the fused loss. Knows no schedule.

What DistiLLM-2's adaptive skew must know of whole sequences is computed here too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float

from vcrd_ray.config.objective import CompositeWeighting, DivergenceSection, ObjectiveSection, TeacherProbWeighting
from vcrd_ray.engines.annotation import pair_keys
from vcrd_ray.method.divergences import Divergence, make_divergence
from vcrd_ray.method.fused import (
    FusedTokens,
    HiddenTeacher,
    LogitsTeacher,
    PerSequenceSkew,
    TeacherDistribution,
    TopKTeacher,
    fused_divergence,
    fused_token_logp,
)
from vcrd_ray.method.objective_state import ObjectiveState, is_adaptive, sequence_advantage, with_adaptive_skew
from vcrd_ray.method.sampling import uniforms
from vcrd_ray.models.finite import check_tokens, first_not_finite, is_finite
from vcrd_ray.models.student import Student
from vcrd_ray.models.wire import from_wire
from vcrd_ray.types import SIDES, FloatArray, PairBatch, Side, TeacherLogits, TeacherSignals, TeacherStates, TeacherTopK


class TokenDivergences:
    """The divergences of an objective between one student and one teacher."""

    def __init__(
        self,
        *,
        student: Student,
        teacher_head: Float[torch.Tensor, "v d"] | None,
        objective: ObjectiveSection,
        vocab_size: int,
        chunk_rows: int,
        seed: int,
    ) -> None:
        self._student = student
        self._teacher_head = teacher_head
        self._objective = objective
        self._vocab_size = vocab_size
        self._chunk_rows = chunk_rows
        self._seed = seed
        self.advantages = np.zeros((2, 2))
        """Sum and number of the owner's advantage over the sequences of each side, since the run began."""

    def of_side(
        self,
        side: Side,
        batch: PairBatch,
        hidden: Float[torch.Tensor, "n d"],
        signals: TeacherSignals | None,
        state: ObjectiveState,
        *,
        plain: bool = False,
    ) -> FusedTokens:
        """One side's tokens of a micro-batch whose student states are `hidden`; `plain` leaves out what only training needs."""
        section = self._objective.on_teacher if side == "teacher" else self._objective.on_student
        span = batch.layout.span(side)
        states = hidden[span]
        teacher = self._teacher_distribution(section, batch, span, signals)
        fixed = make_divergence(section, taid_t=None if state.taid is None else state.taid.t)
        adapted = (
            self._adapted(fixed, side, batch, states, teacher, state) if is_adaptive(section) and not plain else fixed
        )
        weighting = self._objective.weighting
        by_teacher = weighting.mid_step if isinstance(weighting, CompositeWeighting) else weighting
        return fused_divergence(
            divergence=adapted,
            student_hidden=states,
            student_head=self._student.head,
            teacher=teacher,
            vocab_size=self._vocab_size,
            chunk_rows=self._chunk_rows,
            uniform=self._uniform(batch, span)
            if self._objective.needs_judge and side == "teacher" and not plain
            else None,
            teacher_probability_top_k=by_teacher.top_k
            if isinstance(by_teacher, TeacherProbWeighting) and not plain
            else None,
        )

    def check(self, batch: PairBatch, values: FloatArray, signals: TeacherSignals | None) -> None:
        """Refuse divergences that are no numbers. [N]

        Raises:
            NotFiniteError: says whether the teacher's logits are none, or else what of the student is.
        """
        good = np.isfinite(values)
        if good.all():
            return
        if signals is not None and isinstance(signals.distribution, TeacherStates) and self._teacher_head is not None:
            states = from_wire(signals.distribution.states, self._student.device)[torch.from_numpy(~good)]
            if not is_finite(states.float() @ self._teacher_head.float().T):
                check_tokens(batch, "teacher", "logits are", good)
        weight = first_not_finite(self._student.named_parameters())
        what = "divergence from the teacher is" if weight is None else f"{weight}, and so its divergence, is"
        check_tokens(batch, "student", what, good)

    def _uniform(self, batch: PairBatch, span: slice) -> torch.Tensor:
        numbers = uniforms(
            seed=self._seed,
            stream="student-proposal",
            update=batch.update,
            rollout_keys=pair_keys(batch)[span],
            positions=batch.layout.position[span],
        )
        return torch.from_numpy(numbers).to(self._student.device)

    def _token_ids(self, batch: PairBatch, span: slice) -> torch.Tensor:
        return torch.from_numpy(batch.layout.token_ids[span].astype(np.int64)).to(self._student.device)

    def _teacher_distribution(
        self, section: DivergenceSection, batch: PairBatch, span: slice, signals: TeacherSignals | None
    ) -> TeacherDistribution:
        device = self._student.device
        if section.type == "cross_entropy":
            tokens = self._token_ids(batch, span)[:, None]
            return TopKTeacher(ids=tokens, logp=torch.zeros(tokens.shape, device=device))
        assert signals is not None
        match signals.distribution:
            case TeacherStates(states=states):
                assert self._teacher_head is not None
                return HiddenTeacher(hidden=from_wire(states, device)[span], head=self._teacher_head)
            case TeacherLogits(logits=logits):
                return LogitsTeacher(logits=from_wire(logits, device)[span])
            case TeacherTopK(ids=ids, logp=logp):
                return TopKTeacher(ids=from_wire(ids, device)[span], logp=from_wire(logp, device)[span])

    def _adapted(
        self,
        divergence: Divergence,
        side: Side,
        batch: PairBatch,
        states: torch.Tensor,
        teacher: TeacherDistribution,
        state: ObjectiveState,
    ) -> Divergence | PerSequenceSkew:
        assert isinstance(teacher, HiddenTeacher)
        span = batch.layout.span(side)
        tokens = self._token_ids(batch, span)[:, None]

        def logp(hidden: torch.Tensor, head: torch.Tensor) -> npt.NDArray[np.float32]:
            values: npt.NDArray[np.float32] = (
                fused_token_logp(
                    hidden=hidden,
                    head=head,
                    tokens=tokens,
                    vocab_size=self._vocab_size,
                    chunk_rows=self._chunk_rows,
                )[:, 0]
                .float()
                .cpu()
                .numpy()
            )
            return values

        by_student = logp(states.detach(), self._student.head.detach())
        by_teacher = logp(teacher.hidden, teacher.head)
        owner, other = (by_teacher, by_student) if side == "teacher" else (by_student, by_teacher)
        advantage = sequence_advantage(owner, other, batch.layout.side_lengths(side))
        self.advantages[SIDES.index(side)] += (advantage.sum(), len(advantage))
        return with_adaptive_skew(divergence, advantage, batch.layout, side, state)
