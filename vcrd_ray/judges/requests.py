"""Between micro-batches and judges: what is asked about their tokens, and what the answers mean. Knows no models.

A judge may answer nothing for a request, or something of the wrong size; such tokens are known here and weigh 1.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from vcrd_ray.config.objective import CompositeWeighting, Weighting
from vcrd_ray.method.weighting import BoolArray
from vcrd_ray.models.checkpoint_files import token_ids_with
from vcrd_ray.types import IntArray, JudgeRequest, JudgeScores, PairBatch, ScoredProposals, Side

logger = logging.getLogger(__name__)


def judged_at(weighting: Weighting, tokenizer: PreTrainedTokenizerBase) -> frozenset[int] | None:
    """Trajectory tokens at which proposals are judged: those that end a step under the composite rule. None: all."""
    return token_ids_with(tokenizer, "\n") if isinstance(weighting, CompositeWeighting) else None


def judge_request(
    batch: PairBatch, side: Side, proposals: IntArray, *, only_at: Collection[int] | None = None
) -> JudgeRequest:
    """The request about one side's rollouts.

    Args:
        proposals: the other model's proposals, in token order.
        only_at: trajectory tokens at which proposals are judged; elsewhere the trajectory's own takes their place, which
            costs nothing. None: everywhere.
    """
    if only_at is not None:
        own = batch.layout.token_ids[batch.layout.span(side)]
        proposals = np.where(np.isin(own, list(only_at)), proposals, own)
    asked = [(p.question, p.teacher_ids if side == "teacher" else p.student_ids) for p in batch.pairs]
    questions, responses = zip(*((question, ids) for question, ids in asked if len(ids)), strict=True)
    cuts = np.cumsum([len(r) for r in responses])[:-1]
    return JudgeRequest(
        questions=questions,
        responses=responses,
        proposals=tuple(np.split(proposals, cuts)),
    )


def scored_proposals(
    batch: PairBatch,
    scores: Mapping[Side, JudgeScores],
    *,
    teacher_proposals: IntArray,
    student_proposals: IntArray | None,
) -> ScoredProposals:
    """Both proposals and scores of every token of the judged sides.

    The owner of a rollout proposes its own next token; the other model proposes a fresh sample: the teacher on student
    prefixes [N_student], the student on teacher prefixes [N_teacher].
    """
    tokens = batch.layout.token_ids
    parts: list[ScoredProposals] = []
    if "teacher" in scores:
        assert student_proposals is not None
        on_teacher = scores["teacher"]
        parts.append(
            ScoredProposals(
                teacher_proposal=tokens[batch.layout.span("teacher")],
                student_proposal=student_proposals,
                teacher_logit=on_teacher.trunk_logit,
                student_logit=on_teacher.branch_logit,
            )
        )
    if "student" in scores:
        on_student = scores["student"]
        parts.append(
            ScoredProposals(
                teacher_proposal=teacher_proposals,
                student_proposal=tokens[batch.layout.span("student")],
                teacher_logit=on_student.branch_logit,
                student_logit=on_student.trunk_logit,
            )
        )
    return ScoredProposals.concatenate(parts)


def one_per_token(scores: JudgeScores, batch: PairBatch, side: Side) -> JudgeScores:
    """The same, or no scores where it cannot be known which token each belongs to."""
    span = batch.layout.span(side)
    wanted = (span.stop - span.start,)
    found = (np.shape(scores.trunk_logit), np.shape(scores.branch_logit))
    if found == (wanted, wanted):
        return scores
    logger.warning(
        "update %d, micro-batch %d: the judge answered %s scores of tokens and %s of proposals for %s tokens on %s prefixes",
        *(batch.update, batch.micro, *found, wanted, side),
    )
    missing = JudgeScores.nothing(*wanted, quarantined=False)
    return replace(missing, num_tokens=scores.num_tokens, seconds=scores.seconds)


def quarantined_tokens(batch: PairBatch, scores: Mapping[Side, JudgeScores]) -> BoolArray:
    """Tokens that nobody could judge. [N]"""
    quarantined = np.zeros(batch.layout.num_tokens, dtype=np.bool_)
    for side, of_side in scores.items():
        quarantined[batch.layout.span(side)] = of_side.quarantined
    return quarantined
