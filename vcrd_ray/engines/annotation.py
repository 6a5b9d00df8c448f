"""Final hidden states -> what the update loop asked of the teacher. The same for every engine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vcrd_ray.engines import TEACHER_CHUNK_TOKENS
from vcrd_ray.method.fused import head_logits
from vcrd_ray.method.sampling import sample_rows, stable_hash, uniforms
from vcrd_ray.models.finite import check_proposals
from vcrd_ray.models.wire import to_wire
from vcrd_ray.types import (
    IntArray,
    PairBatch,
    TeacherLogits,
    TeacherRequest,
    TeacherSignals,
    TeacherStates,
    TeacherTopK,
)


def teacher_signals(
    batch: PairBatch, hidden: Float[Tensor, "n d"], head: Float[Tensor, "v d"], request: TeacherRequest
) -> TeacherSignals:
    """The distribution at every token as the request wants it, and a proposal at every one on student prefixes.

    Args:
        batch: the micro-batch.
        hidden: states after the final norm that predict each token, in token order.
        head: of the tokenizer's tokens only.
        request: what is wanted. Proposals are drawn at temperature 1 from the exact distribution.
    """
    proposals = _propose(batch, hidden, head, request.seed) if request.propose else np.zeros(0, dtype=np.int32)
    distribution = _distribution(hidden, head, request)
    return TeacherSignals(distribution=distribution, student_prefix_proposals=proposals, seconds=0.0)


def _distribution(hidden: Tensor, head: Tensor, request: TeacherRequest) -> TeacherStates | TeacherLogits | TeacherTopK:
    match request.transport:
        case "hidden":
            return TeacherStates(states=to_wire(hidden))
        case "logits":
            logits = [_logits(hidden[span], head).to(hidden.dtype) for span in _chunks(len(hidden))]
            return TeacherLogits(logits=to_wire(torch.cat(logits)))
        case "top_k":
            return _top_k(hidden, head, request.top_k)


def pair_keys(batch: PairBatch) -> np.ndarray:
    """Random-number key of each token's rollout, a new one for each version of the student. uint64 [N]"""
    names = [f"{p.id}@{p.student_version}" if p.student_version else p.id for p in batch.pairs]
    keys = np.array([stable_hash(name) for name in names], dtype=np.uint64)
    return keys[batch.layout.pair]


def _propose(batch: PairBatch, hidden: Tensor, head: Tensor, seed: int) -> IntArray:
    layout = batch.layout
    on_student = layout.span("student")
    # The same in every epoch: the teacher and the rollout are fixed, so what depends on them alone is judged once.
    uniform = uniforms(
        seed=seed,
        stream="teacher-proposal",
        update=0,
        rollout_keys=pair_keys(batch)[on_student],
        positions=layout.position[on_student],
    )
    hidden, drawn = hidden[on_student], [np.zeros(0, dtype=np.int32)]
    for span in _chunks(len(hidden)):
        logp = torch.log_softmax(_logits(hidden[span], head), dim=-1)
        drawn.append(sample_rows(logp, torch.from_numpy(uniform[span]).to(hidden.device)).cpu().numpy())
    proposals = np.concatenate(drawn).astype(np.int32)
    check_proposals(batch, "teacher", proposals, side="student", vocab_size=len(head))
    return proposals


def _top_k(hidden: Tensor, head: Tensor, k: int) -> TeacherTopK:
    ids, values = [], []
    for span in _chunks(len(hidden)):
        logp = torch.log_softmax(_logits(hidden[span], head), dim=-1)
        top = logp.topk(min(k, logp.shape[-1]), dim=-1)
        ids.append(top.indices.cpu().numpy().astype(np.int32))
        values.append(top.values.cpu().numpy())
    return TeacherTopK(ids=np.concatenate(ids), logp=np.concatenate(values))


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    return head_logits(hidden, head, vocab_size=len(head), dtype=torch.float32)


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, start + TEACHER_CHUNK_TOKENS) for start in range(0, n, TEACHER_CHUNK_TOKENS))
