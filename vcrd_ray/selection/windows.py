"""Documents -> log-probability and rank of their tokens under a model, many documents a row. Knows no scores.

    row       p p s1 s1 s2 s2 | p p s1 s1 s2 s2 s3 | ...
    scored               ^  ^                   ^

Each document is a tree without branches: it sees itself alone, at positions from 0. So packing changes no result, and
the head is applied to the scored positions only, a chunk of them at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vcrd_ray.config.base import ROUNDING
from vcrd_ray.errors import ModelError
from vcrd_ray.judges.attention import TREE_ATTENTION, AttentionKind, flex_length, tree_attention
from vcrd_ray.judges.packed_trees import PackedTrees, Tree, pack
from vcrd_ray.method.fused import fused_token_logp
from vcrd_ray.models.causal_lm import max_positions
from vcrd_ray.models.output_head import check_plain_head
from vcrd_ray.models.packing import batches_within_budget, rows_within_budget
from vcrd_ray.selection.candidates import Candidate
from vcrd_ray.types import FloatArray, IntArray

_CHECKED_DOCUMENTS = 4


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Document:
    """What the model reads in one go, of which the last tokens are scored."""

    ids: IntArray
    first: int
    """Tokens from here on are scored; 1 at least."""

    def __post_init__(self) -> None:
        assert 1 <= self.first < len(self.ids), (self.first, len(self.ids))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenScores:
    """The scored tokens of one document. [n] each"""

    logp: FloatArray
    rank: IntArray | None
    """1 + the number of tokens with a higher logit; None unless asked for."""


def step_windows(candidate: Candidate, window: int) -> list[Document]:
    """Each step behind the prompt and at most `window` steps before it: the context of LALP (arXiv:2510.03988, eq. 2)."""
    documents = []
    for i, step in enumerate(candidate.steps):
        before = candidate.steps[max(0, i - window)].start
        ids = np.concatenate([candidate.prompt_ids, candidate.response_ids[before : step.stop]])
        documents.append(Document(ids=ids, first=len(candidate.prompt_ids) + step.start - before))
    return documents


def whole_response(candidate: Candidate) -> Document:
    """The response behind its prompt."""
    ids = np.concatenate([candidate.prompt_ids, candidate.response_ids])
    return Document(ids=ids, first=len(candidate.prompt_ids))


class TokenScorer:
    """One causal language model that reads documents."""

    def __init__(self, model: Any, *, vocab_size: int, max_batch_tokens: int, row_tokens: int, chunk_rows: int) -> None:
        """Take a Hugging Face causal language model that is on its device; its attention implementation is changed.

        Args:
            vocab_size: tokens of the tokenizer; rows of the head beyond it are padding.
            max_batch_tokens: tokens of one forward, padding included; a longer document goes through alone.
            row_tokens: tokens of a row that holds several documents.
            chunk_rows: positions whose logits exist at a time.

        Raises:
            ModelError: its logits are more than its output embedding times its final states.
        """
        check_plain_head(model, model.name_or_path)
        model.set_attn_implementation(TREE_ATTENTION)
        self._model = model.eval()
        self._head: Float[Tensor, "v d"] = model.get_output_embeddings().weight.detach()[:vocab_size].float()
        self._vocab_size = vocab_size
        self._max_batch_tokens = max_batch_tokens
        self._row_tokens = row_tokens
        self._chunk_rows = chunk_rows
        self._max_positions = max_positions(model.config)
        self.num_tokens = 0
        """Tokens read so far, padding not counted."""

    @torch.inference_mode()
    def score(self, documents: Sequence[Document], *, ranks: bool = False) -> list[TokenScores]:
        """Log-probabilities in float32, and ranks if asked, of the scored tokens of each document.

        Raises:
            ModelError: a document is longer than the model can read.
        """
        trees = [self._tree(document) for document in documents]
        sizes = [len(tree) for tree in trees]
        rows = rows_within_budget(sizes, min(self._row_tokens, self._max_batch_tokens))
        found: list[TokenScores | None] = [None] * len(documents)
        for batch in batches_within_budget([sum(sizes[i] for i in row) for row in rows], self._max_batch_tokens):
            members = [i for r in batch for i in rows[r]]
            scores = self._forward([trees[i] for i in members], [len(rows[r]) for r in batch], ranks=ranks)
            for i, score in zip(members, scores, strict=True):
                found[i] = score
        self.num_tokens += sum(sizes)
        return [score for score in found if score is not None]

    @torch.inference_mode()
    def score_separately(self, document: Document) -> FloatArray:
        """Log-probabilities by a forward of its own, with the model's logits and causal attention: what packing equals."""
        ids = torch.from_numpy(document.ids.astype(np.int64)).to(self._model.device)
        logits = self._model(input_ids=ids[None], use_cache=False).logits[0, document.first - 1 : -1]
        logp = logits[:, : self._vocab_size].float().log_softmax(-1)
        values: FloatArray = logp.gather(1, ids[document.first :, None])[:, 0].cpu().numpy()
        return values

    def self_check(self, documents: Sequence[Document]) -> float:
        """Largest |packed - separate| log-probability over the longest few documents.

        Raises:
            ModelError: more than rounding: the model's logits or its attention are not what is computed here.
        """
        chosen = sorted(documents, key=lambda d: -len(d.ids))[:_CHECKED_DOCUMENTS]
        packed = self.score(chosen)
        difference = max(
            float(np.nan_to_num(np.abs(p.logp - self.score_separately(d)), nan=np.inf).max())
            for p, d in zip(packed, chosen, strict=True)
        )
        if difference > ROUNDING["bfloat16" if self._model.dtype == torch.bfloat16 else "float32"]:
            raise ModelError(
                f"packed log-probabilities of {self._model.config.model_type} differ from those of separate forwards by"
                f" {difference:.2g} nats: its attention is unusual (a sliding window, capped scores), which"
                " scoring does not support; use a model of another architecture, such as Qwen2 or Llama"
            )
        return difference

    def _tree(self, document: Document) -> Tree:
        if len(document.ids) > self._max_positions:
            raise ModelError(
                f"a document of {len(document.ids)} tokens, but the model has {self._max_positions} positions; lower"
                " distill.max_length, or select.window"
            )
        nothing = np.zeros(0, dtype=np.int32)
        reads = np.arange(document.first - 1, len(document.ids) - 1, dtype=np.int32)
        return Tree(
            trunk=document.ids,
            branch_ids=nothing,
            branch=nothing,
            num_seen=nothing,
            trunk_index=reads,
            branch_index=reads,
        )

    def _pack(self, trees: Sequence[Tree], per_row: Sequence[int], kind: AttentionKind) -> PackedTrees:
        rows = [range(start, stop) for start, stop in pairwise([0, *accumulate(per_row)])]
        return pack(trees, rows, device=self._model.device, round_up=flex_length if kind == "flex" else None)

    def _forward(self, trees: Sequence[Tree], per_row: Sequence[int], *, ranks: bool) -> list[TokenScores]:
        """One forward over documents in the order of their rows."""
        kind: AttentionKind = "flex" if self._model.device.type == "cuda" else "dense"
        packed = self._pack(trees, per_row, kind)
        attend = tree_attention(kind, packed, dtype=self._model.dtype)
        states = self._model.get_decoder()(
            input_ids=packed.ids, position_ids=packed.position_ids, trees=attend, use_cache=False
        ).last_hidden_state
        hidden = states.flatten(0, 1)[packed.trunk_index].float()
        tokens = packed.ids.flatten()[packed.trunk_index + 1]
        logp = fused_token_logp(
            hidden=hidden,
            head=self._head,
            tokens=tokens[:, None],
            vocab_size=self._vocab_size,
            chunk_rows=self._chunk_rows,
        )[:, 0]
        rank = token_ranks(hidden, self._head, tokens, chunk_rows=self._chunk_rows) if ranks else None
        cuts = np.cumsum([len(tree.trunk_index) for tree in trees])[:-1]
        logps = np.split(logp.cpu().numpy(), cuts)
        if rank is None:
            return [TokenScores(logp=values, rank=None) for values in logps]
        found = np.split(rank.cpu().numpy().astype(np.int32), cuts)
        return [TokenScores(logp=values, rank=places) for values, places in zip(logps, found, strict=True)]


def token_ranks(
    hidden: Float[Tensor, "n d"], head: Float[Tensor, "v d"], tokens: Int[Tensor, " n"], *, chunk_rows: int
) -> Int[Tensor, " n"]:
    """1 + the number of tokens with a higher logit, chunk by chunk. [n]"""
    ranks = torch.empty_like(tokens)
    for start in range(0, len(hidden), chunk_rows):
        rows = slice(start, start + chunk_rows)
        logits = hidden[rows] @ head.T
        ranks[rows] = 1 + (logits > logits.gather(1, tokens[rows, None])).sum(-1)
    return ranks
