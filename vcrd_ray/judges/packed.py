"""A causal model with a scoring head as a judge: all proposals of a trajectory in about one pass.

Knows how to run trees through a model. Where a family reads its scores, and in which format, is its `JudgeFormat`; its files
are read in checkpoint.py. Knows nothing of weights, losses or Ray.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vcrd_ray.judges import Judge, JudgeProfile
from vcrd_ray.judges.attention import TREE_ATTENTION, AttentionKind, flex_length, tree_attention
from vcrd_ray.judges.checkpoint import check_readable
from vcrd_ray.judges.packed_trees import Tree, pack
from vcrd_ray.judges.self_check import largest_difference
from vcrd_ray.models.batching import pad_right
from vcrd_ray.models.causal_lm import max_positions
from vcrd_ray.models.packing import batches_within_budget, rows_within_budget
from vcrd_ray.types import FloatArray, IntArray, JudgeRequest, JudgeScores, StepSolution

_BRANCHY = 0.6
"""Branch tokens for each trunk token beyond which causal attention twice is faster than a mask."""


@runtime_checkable
class JudgeFormat(Protocol):
    """A family's input format, and where in it scores are read. Knows tokenizers only."""

    def tree(self, question: str, response: IntArray, proposal: IntArray) -> Tree:
        """One trajectory with a branch where a proposal differs and can be judged."""

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """Input ids, and the index at which each step's score is read: the authors' own use. [n] and [steps]"""


class PackedJudge(Judge):
    """A backbone, a head over its final states, and a reading."""

    def __init__(
        self,
        *,
        backbone: Any,
        head: Callable[[Tensor], Tensor],
        reading: JudgeFormat,
        profile: JudgeProfile,
        max_batch_tokens: int,
        attention: AttentionKind | Literal["auto"],
    ) -> None:
        """Take a model that is loaded and on its device.

        Args:
            backbone: Hugging Face causal backbone, without language model head.
            head: final hidden states in float32 [..., d] -> logits of the score [...].
            reading: how trajectories become trees.
            profile: what it says of itself.
            max_batch_tokens: tokens of one forward, padding included; a longer tree goes through alone.
            attention: how packed trees attend; auto: flex on a GPU, elsewhere two_stream for batches with a one-token branch
                at most positions, else dense.
        """
        self.profile = profile
        self._backbone = backbone.eval()
        self._backbone.set_attn_implementation(TREE_ATTENTION)
        self._device = torch.device(backbone.device)
        self._head = head
        self._reading = reading
        self._max_batch_tokens = max_batch_tokens
        on_gpu = self._device.type == "cuda"
        self._attention: AttentionKind | Literal["auto"] = "flex" if attention == "auto" and on_gpu else attention
        self._num_embeddings = int(backbone.get_input_embeddings().num_embeddings)
        self._max_positions = max_positions(backbone.config)

    @torch.inference_mode()
    def score(self, request: JudgeRequest) -> JudgeScores:
        """Logits of every trajectory token and of every proposal, trunks and branches packed.

        Raises:
            ModelError: a token without an embedding, or a trajectory beyond the judge's positions.
        """
        start = time.perf_counter()
        trees = self._trees(request)
        bounds = _token_bounds(request)
        own_logit = np.empty(bounds[-1], dtype=np.float32)
        other_logit = np.empty(bounds[-1], dtype=np.float32)
        for rows in self._batches([len(tree) for tree in trees]):
            batch = [i for row in rows for i in row]
            places = {tree: place for place, tree in enumerate(batch)}
            packed = pack(
                [trees[i] for i in batch],
                [[places[i] for i in row] for row in rows],
                device=self._device,
                round_up=flex_length if self._attention == "flex" else None,
            )
            attend = tree_attention(self._attention_for([trees[i] for i in batch]), packed, dtype=self._backbone.dtype)
            logits = self._logits(packed.ids, position_ids=packed.position_ids, trees=attend).flatten()
            indices = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in batch])
            own_logit[indices] = logits[packed.trunk_index].cpu().numpy()
            other_logit[indices] = logits[packed.branch_index].cpu().numpy()
        return JudgeScores(
            trunk_logit=own_logit,
            branch_logit=other_logit,
            num_tokens=sum(len(tree) for tree in trees),
            seconds=time.perf_counter() - start,
        )

    @torch.inference_mode()
    def score_separately(self, request: JudgeRequest, rows: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """Logits of some rows' own tokens and proposals, each by a forward of its own. [rows] each

        This is what packed scoring must equal: the model's causal attention, with no mask and no positions of ours.
        """
        trees = self._trees(request)
        bounds = _token_bounds(request)
        found = []
        for row in rows:
            s = int(np.searchsorted(bounds, row, side="right")) - 1
            tree, t = trees[s], row - bounds[s]
            found.append([self._alone(tree.path(int(index[t]))) for index in (tree.trunk_index, tree.branch_index)])
        own, other = np.asarray(found, dtype=np.float32).reshape(-1, 2).T
        return own, other

    @torch.inference_mode()
    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        inputs = [self._reading.steps(solution) for solution in solutions]
        for s, (ids, _) in enumerate(inputs):
            self._check(f"solution {s}", ids, num_positions=len(ids))
        scores: list[FloatArray] = [np.zeros(0, dtype=np.float32)] * len(inputs)
        for batch in batches_within_budget([len(ids) for ids, _ in inputs], self._max_batch_tokens):
            padded = pad_right([inputs[i][0] for i in batch])
            logits = self._logits(torch.from_numpy(padded).to(self._device)).cpu().numpy()
            for row, i in enumerate(batch):
                scores[i] = logits[row, inputs[i][1]]
        return scores

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        """Largest |packed - separate| difference in logit over random rows, those with a branch first.

        Infinite where a logit is no number; 0 where there is nothing to compare.
        """
        trees = self._trees(request)
        if not trees:
            return 0.0
        return largest_difference(
            self.score(request),
            partial(self.score_separately, request),
            differs=np.concatenate([tree.trunk_index != tree.branch_index for tree in trees]),
            count=num_branches,
            seed=seed,
        )

    def _trees(self, request: JudgeRequest) -> list[Tree]:
        asked = zip(request.questions, request.responses, request.proposals, strict=True)
        trees = [self._reading.tree(question, response, proposal) for question, response, proposal in asked]
        for s, tree in enumerate(trees):
            ids = np.concatenate([tree.trunk, tree.branch_ids])
            self._check(f"trajectory {s}", ids, num_positions=tree.num_positions)
        return trees

    def _attention_for(self, trees: Sequence[Tree]) -> AttentionKind:
        if self._attention != "auto":
            return self._attention
        # Measured: jobs.bench judge. Longer branches take several passes of two_stream.
        share = sum(len(tree.branch_ids) for tree in trees) / sum(len(tree.trunk) for tree in trees)
        return "two_stream" if _BRANCHY < share <= 1 else "dense"

    def _batches(self, sizes: Sequence[int]) -> list[list[list[int]]]:
        """Forwards, each a list of rows of trees: for flex attention one row of many trees, else a row a tree."""
        if self._attention == "flex":
            return [[row] for row in rows_within_budget(sizes, self._max_batch_tokens)]
        return [[[i] for i in batch] for batch in batches_within_budget(sizes, self._max_batch_tokens)]

    def _alone(self, ids: IntArray) -> float:
        return float(self._logits(torch.from_numpy(ids.astype(np.int64))[None].to(self._device))[0, -1])

    def _logits(self, ids: Int[Tensor, "S L"], **how: Any) -> Float[Tensor, "S L"]:
        """Logit at every token; causal attention unless `how` says otherwise."""
        hidden: Tensor = self._backbone(input_ids=ids, use_cache=False, **how).last_hidden_state
        return self._head(hidden.float())

    def _check(self, what: str, ids: IntArray, *, num_positions: int) -> None:
        check_readable(
            what,
            ids,
            num_embeddings=self._num_embeddings,
            num_positions=num_positions,
            max_positions=self._max_positions,
        )


def _token_bounds(request: JudgeRequest) -> npt.NDArray[np.int64]:
    """Trajectory s owns the rows bounds[s] : bounds[s + 1]. [S + 1]"""
    return np.cumsum([0, *(len(response) for response in request.responses)], dtype=np.int64)
