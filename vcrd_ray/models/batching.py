"""Token ids -> padded tensors and the indices that read response positions back. Knows nothing of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int

from vcrd_ray.models.packing import rows_within_budget
from vcrd_ray.types import IntArray, RolloutPair


@dataclass(frozen=True, kw_only=True)
class ResponseBatch:
    """Prompt + response sequences, right-padded, with the positions that predict each response token.

    Token n of a loss is predicted by the state at `ids[token_sequence[n], token_index[n]]`: the first response token by the
    last prompt token. There is no attention mask: padding stands behind everything, and causal attention does not look
    there.
    """

    ids: Int[torch.Tensor, "s l"]
    positions: Int[torch.Tensor, "s l"] | None
    """Position of each token in its own sequence; each 0 begins a sequence that sees nothing before it. None: one
    sequence a row."""
    token_sequence: Int[torch.Tensor, " n"]
    token_index: Int[torch.Tensor, " n"]


def response_batch(pairs: Sequence[RolloutPair], padding: int, device: torch.device) -> ResponseBatch:
    """The rollouts of all pairs as sequences in token order: teacher responses, then student responses; empty ones left out."""
    on_teacher = [(p.prompt_ids, p.teacher_ids) for p in pairs if len(p.teacher_ids)]
    on_student = [(p.prompt_ids, p.student_ids) for p in pairs if len(p.student_ids)]
    prompts, responses = zip(*on_teacher, *on_student, strict=True)
    return batch_responses(prompts, responses, padding, device)


def batch_responses(
    prompts: Sequence[IntArray], responses: Sequence[IntArray], padding: int, device: torch.device
) -> ResponseBatch:
    """Prompt i followed by response i, right-padded to the longest."""
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    ids = np.full((len(prompts), width), padding, dtype=np.int64)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, : len(prompt) + len(response)] = np.concatenate([prompt, response])
    lengths = [len(r) for r in responses]
    sequence = np.repeat(np.arange(len(prompts)), lengths)
    index = np.concatenate([np.arange(len(p) - 1, len(p) + n - 1) for p, n in zip(prompts, lengths, strict=True)])
    return ResponseBatch(
        ids=torch.from_numpy(ids).to(device),
        positions=None,
        token_sequence=torch.from_numpy(sequence).to(device),
        token_index=torch.from_numpy(index).to(device),
    )


def packed_responses(
    prompts: Sequence[IntArray], responses: Sequence[IntArray], padding: int, device: torch.device, *, row_length: int
) -> ResponseBatch:
    """The same sequences laid end to end in as few rows of at most `row_length` tokens as first fit finds.

    Positions start again with each sequence (and with the padding), by which attention keeps them apart.
    """
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    bins = rows_within_budget(lengths, row_length)
    width = max(sum(lengths[i] for i in members) for members in bins)
    ids = np.full((len(bins), width), padding, dtype=np.int64)
    positions = np.zeros_like(ids)
    sequence, at = [], []
    for row, members in enumerate(bins):
        start = 0
        for index in members:
            end = start + lengths[index]
            ids[row, start:end] = np.concatenate([prompts[index], responses[index]])
            positions[row, start:end] = np.arange(lengths[index])
            sequence.append(np.full(len(responses[index]), row))
            at.append(np.arange(start + len(prompts[index]) - 1, end - 1))
            start = end
        positions[row, start:] = np.arange(width - start)
    return ResponseBatch(
        ids=torch.from_numpy(ids).to(device),
        positions=torch.from_numpy(positions).to(device),
        token_sequence=torch.from_numpy(np.concatenate(sequence)).to(device),
        token_index=torch.from_numpy(np.concatenate(at)).to(device),
    )


def pad_right(sequences: Sequence[IntArray]) -> npt.NDArray[np.int64]:
    """Ids with zeros behind, at which causal attention never looks. [S, L]"""
    ids = np.zeros((len(sequences), max(len(s) for s in sequences)), dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    return ids


def pad_left(prompts: Sequence[IntArray], padding: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids and mask for generation, where all sequences must end together. [S, L] each"""
    width = max(len(p) for p in prompts)
    ids = np.full((len(prompts), width), padding, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask
