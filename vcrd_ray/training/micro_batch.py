"""A micro-batch on its way through an update: what is known of it after each action of the schedule. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from vcrd_ray.method.fused import FusedTokens
from vcrd_ray.method.weighting import TeacherProbabilities
from vcrd_ray.training.signals import Future
from vcrd_ray.types import IntArray, JudgeScores, PairBatch, Side, TeacherSignals


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Its teacher signals have been asked for, and the scores that depend on no student weights."""

    batch: Future[PairBatch]
    teacher: Future[TeacherSignals] | None
    student_prefix_scores: Future[JudgeScores] | None


@dataclass(frozen=True, kw_only=True)
class Forwarded:
    """Its graph waits for its weights."""

    asked: Asked
    batch: PairBatch
    fused: dict[Side, FusedTokens]
    """In token order; a side that takes no part is missing."""
    teacher_prefix_scores: Future[JudgeScores] | None

    def token_divergences(self) -> torch.Tensor:
        """Of all tokens, with gradient. [N]"""
        return torch.cat([fused.divergence for fused in self.fused.values()])

    def teacher_proposals(self) -> IntArray:
        """a^T on student prefixes. [N_student]"""
        assert self.asked.teacher is not None
        return self.asked.teacher.result().student_prefix_proposals

    def student_proposals(self) -> IntArray | None:
        """a^S on teacher prefixes [N_teacher]; None where they take no part."""
        return student_proposals(self.fused["teacher"]) if "teacher" in self.fused else None


def student_proposals(fused: FusedTokens) -> IntArray:
    """What the student proposes at each token. [n]"""
    assert fused.student_proposal is not None
    return fused.student_proposal.cpu().numpy().astype(np.int32)


def teacher_probabilities(sides: Iterable[FusedTokens]) -> TeacherProbabilities | None:
    """Of all sides, in token order; None where no rule asked for them."""
    of_argmax, collision = [], []
    for fused in sides:
        if fused.teacher_prob_of_student_argmax is None or fused.teacher_collision is None:
            return None
        of_argmax.append(fused.teacher_prob_of_student_argmax)
        collision.append(fused.teacher_collision)
    of_argmax_array, collision_array = (torch.cat(parts).float().cpu().numpy() for parts in (of_argmax, collision))
    return TeacherProbabilities(of_student_argmax=of_argmax_array, collision=collision_array)
