"""What flows through a distillation run, one type a stage. Knows numpy only: no models, no Ray.

In one file, however long, because one reads it in one go before anything else.

Tokens. A micro-batch of pairs is flattened to its response *tokens*: first those of all teacher rollouts in the order of
the pairs, then those of all student rollouts. Every array with an entry a token (divergence, proposal, score, weight)
follows that order; `TokenLayout` is the one place that computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt

from vcrd_ray.errors import DataError, NotFiniteError

Side = Literal["teacher", "student"]
"""Whose rollout (and so whose prefixes) a token belongs to."""
SIDES: tuple[Side, Side] = ("teacher", "student")
"""In token order."""

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One problem as it came from a data set, and the token ids a policy is asked with."""

    id: str
    question: str
    """The bare problem: what a judge is shown, and what the chat template wraps."""
    gold: str | None
    """The gold answer or solution, or None where the data set has none."""
    ids: IntArray
    """Policy prompt ids, chat template applied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled response."""

    prompt_id: str
    ids: IntArray
    """Response ids, the end-of-sequence token included when the model emitted it. [T], T >= 1."""
    logprobs: FloatArray
    """Log-probability of each sampled token under the untempered model. [T]"""
    finish_reason: Literal["stop", "length"]

    def __post_init__(self) -> None:
        if len(self.ids) == 0 or len(self.ids) != len(self.logprobs):
            raise DataError(
                f"rollout of prompt {self.prompt_id!r}: {len(self.ids)} ids and {len(self.logprobs)} log-probabilities;"
                " both must have the same length of at least 1"
            )
        if not np.isfinite(self.logprobs).all():
            raise NotFiniteError(
                f"rollout of prompt {self.prompt_id!r}: log-probability {self.logprobs[~np.isfinite(self.logprobs)][0]} of a"
                " sampled token: the model's logits are no numbers; check its checkpoint, or load it in another dtype"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutPair:
    """A prompt with one response of each model: the unit of training data. A response that takes no part is empty."""

    id: str
    question: str
    prompt_ids: IntArray
    teacher_ids: IntArray
    student_ids: IntArray
    student_version: int = 0
    """Updates that the student had done when it wrote its response."""

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise DataError(f"pair {self.id!r}: prompt_ids is empty; every pair needs a prompt")
        if len(self.teacher_ids) == 0 and len(self.student_ids) == 0:
            raise DataError(f"pair {self.id!r}: both responses are empty; every pair needs one at least")

    def only(self, side: Side) -> RolloutPair:
        """The same pair with the other side's response taken out."""
        nothing = np.zeros(0, dtype=np.int32)
        return replace(self, student_ids=nothing) if side == "teacher" else replace(self, teacher_ids=nothing)


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """A micro-batch: what one forward, one teacher request and one judge round are about."""

    update: int
    """Index of the optimizer update that this micro-batch belongs to, from 0."""
    micro: int
    """Index within this rank's accumulation window, from 0."""
    pairs: tuple[RolloutPair, ...]

    def __post_init__(self) -> None:
        if not self.pairs:
            raise DataError(f"update {self.update}, micro-batch {self.micro}: no pairs")

    @cached_property
    def layout(self) -> TokenLayout:
        """The token order of this batch."""
        return TokenLayout(pairs=self.pairs)


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """Where each token comes from. All arrays are [N], N = N_teacher + N_student response positions.

    Example, two pairs with teacher responses of 2 and 1 tokens and student responses of 1 and 2:
        is_teacher  1 1 1 0 0 0
        pair        0 0 1 0 1 1
        position    0 1 0 0 0 1
    """

    pairs: tuple[RolloutPair, ...]

    @cached_property
    def lengths(self) -> IntArray:
        """Response length of each of the 2B sequences: B teacher responses, then B student responses. [2B]"""
        sizes = [len(p.teacher_ids) for p in self.pairs] + [len(p.student_ids) for p in self.pairs]
        return np.asarray(sizes, dtype=np.int32)

    def side_lengths(self, side: Side) -> IntArray:
        """Response length of each pair on one side; 0 where that side takes no part. [B]"""
        cut = len(self.pairs)
        return self.lengths[:cut] if side == "teacher" else self.lengths[cut:]

    @property
    def num_tokens(self) -> int:
        """N."""
        return int(self.lengths.sum())

    @cached_property
    def num_teacher_tokens(self) -> int:
        """Tokens [:n] are on teacher prefixes, tokens [n:] on student prefixes."""
        return int(self.lengths[: len(self.pairs)].sum())

    def span(self, side: Side) -> slice:
        """Where the tokens on one side's prefixes are."""
        cut = self.num_teacher_tokens
        return slice(0, cut) if side == "teacher" else slice(cut, self.num_tokens)

    def takes_part(self, side: Side) -> bool:
        """Whether a side takes part at all."""
        span = self.span(side)
        return bool(span.stop > span.start)

    @cached_property
    def is_teacher(self) -> npt.NDArray[np.bool_]:
        """True on teacher prefixes. [N]"""
        return np.arange(self.num_tokens) < self.num_teacher_tokens

    @cached_property
    def sequence(self) -> IntArray:
        """Index into the 2B sequences. [N]"""
        return np.repeat(np.arange(len(self.lengths), dtype=np.int32), self.lengths)

    @cached_property
    def pair(self) -> IntArray:
        """Index into `pairs`. [N]"""
        return self.sequence % np.int32(len(self.pairs))

    @cached_property
    def position(self) -> IntArray:
        """Position within the response, from 0. [N]"""
        return np.concatenate([np.arange(n, dtype=np.int32) for n in self.lengths])

    @cached_property
    def token_ids(self) -> IntArray:
        """The trajectory's tokens: the owner's proposals. [N]"""
        parts = [p.teacher_ids for p in self.pairs] + [p.student_ids for p in self.pairs]
        return np.concatenate(parts).astype(np.int32)

    @cached_property
    def sequence_lengths(self) -> IntArray:
        """Response length of the sequence that each token belongs to. [N]"""
        return self.lengths[self.sequence]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRequest:
    """What the update loop wants of the teacher, the same for the whole run."""

    transport: Literal["hidden", "top_k", "logits"]
    top_k: int
    propose: bool
    """Whether a^T is drawn on student prefixes."""
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherStates:
    """The teacher's distribution, exactly, for whoever holds its head."""

    states: npt.NDArray[np.generic]
    """Last hidden states after the final norm at the position that predicts each token. [N, d_teacher]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherLogits:
    """The teacher's distribution, exactly, as it is."""

    logits: npt.NDArray[np.generic]
    """[N, tokens of the tokenizer]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherTopK:
    """The most probable tokens alone."""

    ids: IntArray
    """[N, k]"""
    logp: FloatArray
    """Their log-probabilities under the whole distribution. [N, k]"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSignals:
    """What the teacher says about one micro-batch, in token order. Floats are float32, or the bits of bfloat16 as uint16."""

    distribution: TeacherStates | TeacherLogits | TeacherTopK
    """As `TeacherRequest.transport` asked."""
    student_prefix_proposals: IntArray
    """a^T ~ p(.|c^S), one for each token on student prefixes; empty unless asked for. [N_student]"""
    seconds: float
    """Time the teacher worked on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeRequest:
    """Trajectories and, at every response position, one alternative token to score beside the trajectory's own."""

    questions: tuple[str, ...]
    """The problem of each trajectory. [S]"""
    responses: tuple[IntArray, ...]
    """Policy token ids of each response. [S] of [T_s]"""
    proposals: tuple[IntArray, ...]
    """The other model's proposal at each position; equal to the response's token where there is nothing to score."""

    def __post_init__(self) -> None:
        if not (len(self.questions) == len(self.responses) == len(self.proposals)):
            raise DataError("judge request: questions, responses and proposals differ in number")
        for index, (response, proposal) in enumerate(zip(self.responses, self.proposals, strict=True)):
            if len(response) != len(proposal):
                raise DataError(
                    f"judge request: trajectory {index} has {len(response)} tokens, {len(proposal)} proposals"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeScores:
    """Logits of r(c, a): score = sigmoid(logit). Concatenated over trajectories, [sum of T_s] each."""

    trunk_logit: FloatArray
    """The trajectory's own token."""
    branch_logit: FloatArray
    """The proposal; a copy of `trunk_logit` where proposal and trajectory token are equal."""
    num_tokens: int
    """Tokens that went through the judge for this answer, prompt, trunk and branches together, padding not counted."""
    seconds: float
    """Time the judge worked on it."""
    quarantined: bool = False
    """The request was given up because judges died of it: all logits are NaN, and no fault of theirs."""

    @classmethod
    def nothing(cls, num_tokens: int, *, quarantined: bool) -> JudgeScores:
        """No score for any token."""
        logit = np.full(num_tokens, np.nan, dtype=np.float32)
        return cls(trunk_logit=logit, branch_logit=logit, num_tokens=0, seconds=0.0, quarantined=quarantined)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSolution:
    """A solution cut in steps, as judges of whole steps read it."""

    question: str
    steps: tuple[str, ...]
    """Without the separators between them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredProposals:
    """Both models' proposals at every token and what the judge said of them. All arrays [N], token order."""

    teacher_proposal: IntArray
    student_proposal: IntArray
    teacher_logit: FloatArray
    """Judge logit of the teacher's proposal; NaN where the rule needs no judge."""
    student_logit: FloatArray

    @classmethod
    def concatenate(cls, parts: Sequence[ScoredProposals]) -> ScoredProposals:
        """Tokens of several parts, one after the other."""
        names = ("teacher_proposal", "student_proposal", "teacher_logit", "student_logit")
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """One judged pair of proposals, kept for the report."""

    update: int
    pair: str
    side: Side
    position: int
    length: int
    """Length of the response that `position` is in."""
    teacher_token: int
    student_token: int
    teacher_score: float
    student_score: float
    weight: float
    divergence: float
    """Unweighted divergence of the token, nats."""
    sampled: bool
    """Whether it belongs to the uniform sample; the others are the extremes of their update."""
    student_version: int = 0
    """Updates that the student had done when it wrote the response that `position` is in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateReport:
    """What one optimizer update did."""

    update: int
    metrics: dict[str, float]
    decisions: tuple[Decision, ...]
