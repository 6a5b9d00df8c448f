"""A process reward model with a linear value head as a judge of single tokens.

Knows how to score with such a model; knows nothing of its files, of weights, losses or Ray.

r(c, a) = sigmoid(v_head(h)), h = last hidden state, after the final norm, at the token a itself, on
the input bos + problem + newline + response prefix + a (Skywork-o1-Open-PRM,
github.com/SkyworkAI/skywork-o1-prm-inference). The response goes in as the policy's own token ids.
The published models were trained at step ends only: scores inside a step extrapolate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int

from vcrd_ray.errors import ModelError
from vcrd_ray.judges.value_head_checkpoint import read_value_head_checkpoint
from vcrd_ray.tree import batches_within_budget, leaf_positions, pack
from vcrd_ray.types import FloatArray, IntArray, JudgeRequest, JudgeScores

_CACHED_PROMPTS = 4096
"""Questions whose ids are kept: each comes back for both rollouts of a pair and in every epoch."""


class ValueHeadJudge:
    """Packed scoring with a causal backbone and a linear head. `load` makes one of a checkpoint."""

    def __init__(
        self,
        *,
        backbone: Any,
        head_weight: Float[torch.Tensor, "1 d"],
        head_bias: Float[torch.Tensor, " 1"],
        encode_prompt: Callable[[str], Sequence[int]],
        special_ids: Collection[int],
        max_batch_tokens: int,
        fingerprint: str,
    ) -> None:
        """Take a model that is loaded and on its device.

        Args:
            backbone: Hugging Face causal backbone, without language model head.
            head_weight: row of the value head.
            head_bias: its bias.
            encode_prompt: problem -> judge prompt ids, at least one.
            special_ids: tokens that get no leaf, be they the trajectory's or the candidate.
            max_batch_tokens: tokens of one forward, padding included; a longer trajectory goes
                through alone.
            fingerprint: identity of the checkpoint.
        """
        self.fingerprint = fingerprint
        self._backbone = backbone.eval()
        self._device = torch.device(backbone.device)
        # fp32 whatever the backbone's dtype: the method lives on ratios of scores.
        self._head_weight = head_weight.detach().to(self._device, torch.float32)[0]
        self._head_bias = head_bias.detach().to(self._device, torch.float32)[0]
        self._special_ids = frozenset(special_ids)
        self._max_batch_tokens = max_batch_tokens
        self._num_embeddings = int(backbone.get_input_embeddings().num_embeddings)
        self._max_positions = int(backbone.config.max_position_embeddings)

        def prompt_ids(question: str) -> IntArray:
            return np.asarray(encode_prompt(question), dtype=np.int32)

        self._prompt_ids = lru_cache(maxsize=_CACHED_PROMPTS)(prompt_ids)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str,
        device: str | torch.device,
        special_ids: Collection[int],
        max_batch_tokens: int,
    ) -> ValueHeadJudge:
        """Judge of a checkpoint directory, the backbone in `dtype` ("float32", "bfloat16").

        Raises:
            ModelError: the directory does not hold such a judge; says what is wrong and the cure.
        """
        checkpoint = read_value_head_checkpoint(Path(path), dtype=dtype)
        return cls(
            backbone=checkpoint.backbone.to(device),
            head_weight=checkpoint.head_weight,
            head_bias=checkpoint.head_bias,
            encode_prompt=checkpoint.encode_prompt,
            special_ids=special_ids,
            max_batch_tokens=max_batch_tokens,
            fingerprint=checkpoint.fingerprint,
        )

    @torch.inference_mode()
    def score(self, request: JudgeRequest) -> JudgeScores:
        """Logits of every trajectory token and of every candidate, trunks and leaves packed.

        Raises:
            ModelError: a token without an embedding, or a trajectory beyond the judge's positions.
        """
        start = time.perf_counter()
        prompts = [self._prompt_ids(question) for question in request.questions]
        leaves = [
            leaf_positions(response, candidate, self._special_ids)
            for response, candidate in zip(request.responses, request.candidates, strict=True)
        ]
        sizes = []
        for s, (prompt, response, leaf) in enumerate(zip(prompts, request.responses, leaves, strict=True)):
            used = np.concatenate([response, request.candidates[s][leaf]])
            self._check_readable(s, used, num_trunk=len(prompt) + len(response))
            sizes.append(len(prompt) + len(used))
        bounds = _row_bounds(request)
        trunk_logit = np.empty(bounds[-1], dtype=np.float32)
        candidate_logit = np.empty(bounds[-1], dtype=np.float32)
        for batch in batches_within_budget(sizes, self._max_batch_tokens):
            trees = pack(
                prompts=[prompts[s] for s in batch],
                responses=[request.responses[s] for s in batch],
                candidates=[request.candidates[s] for s in batch],
                leaves=[leaves[s] for s in batch],
                dtype=self._backbone.dtype,
                device=self._device,
            )
            logits = self._logits(trees.ids, mask=trees.mask, position_ids=trees.position_ids)
            trunk = logits.flatten()[trees.trunk_index]
            candidate = trunk.clone()
            candidate[trees.leaf_row] = logits.flatten()[trees.leaf_index]
            rows = np.concatenate([np.arange(bounds[s], bounds[s + 1]) for s in batch])
            trunk_logit[rows] = trunk.cpu().numpy()
            candidate_logit[rows] = candidate.cpu().numpy()
        return JudgeScores(
            trunk_logit=trunk_logit,
            candidate_logit=candidate_logit,
            num_tokens=sum(sizes),
            seconds=time.perf_counter() - start,
        )

    @torch.inference_mode()
    def score_separately(self, request: JudgeRequest, rows: Sequence[int]) -> FloatArray:
        """Logit of each row's candidate by a forward of its own over prefix and candidate. [rows]

        This is what packed scoring must equal: the model's own causal attention, with no mask and
        no positions of ours.
        """
        bounds = _row_bounds(request)
        logits = []
        for row in rows:
            s = int(np.searchsorted(bounds, row, side="right")) - 1
            t = int(row - bounds[s])
            prompt = self._prompt_ids(request.questions[s])
            ids = [prompt, request.responses[s][:t], request.candidates[s][t : t + 1]]
            batch = torch.from_numpy(np.concatenate(ids).astype(np.int64))[None].to(self._device)
            logits.append(float(self._logits(batch)[0, -1]))
        return np.asarray(logits, dtype=np.float32)

    def self_check(self, request: JudgeRequest, *, num_leaves: int, seed: int) -> float:
        """Largest |packed - separate| difference in logit over random leaves.

        Compares trajectory tokens where a request has no leaf. Infinite where a logit is no number;
        0 where there is nothing to compare.
        """
        if not request.responses:
            return 0.0
        response, candidate = np.concatenate(request.responses), np.concatenate(request.candidates)
        has_leaf = leaf_positions(response, candidate, self._special_ids)
        comparable = np.flatnonzero(has_leaf if has_leaf.any() else response == candidate)
        rng = np.random.default_rng(seed)
        rows = rng.choice(comparable, size=min(num_leaves, len(comparable)), replace=False)
        packed = self.score(request).candidate_logit[rows]
        difference = np.abs(packed - self.score_separately(request, rows.tolist()))
        return float(np.max(np.nan_to_num(difference, nan=np.inf), initial=0.0))

    def _logits(
        self,
        ids: Int[torch.Tensor, "S L"],
        *,
        mask: Float[torch.Tensor, "S 1 L L"] | None = None,
        position_ids: Int[torch.Tensor, "S L"] | None = None,
    ) -> Float[torch.Tensor, "S L"]:
        """Judge logit at every token. A 4D mask is used as it is; None means causal attention."""
        hidden: torch.Tensor = self._backbone(
            input_ids=ids, attention_mask=mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return hidden.float() @ self._head_weight + self._head_bias

    def _check_readable(self, trajectory: int, ids: IntArray, *, num_trunk: int) -> None:
        foreign = ids[(ids < 0) | (ids >= self._num_embeddings)]
        if len(foreign):
            raise ModelError(
                f"judge request, trajectory {trajectory}: token id {int(foreign[0])} is outside the"
                f" judge's {self._num_embeddings} embeddings; use a judge of the policy's tokenizer"
                " family, or the weighting `teacher_prob`, which needs no judge"
            )
        if num_trunk > self._max_positions:
            raise ModelError(
                f"judge request, trajectory {trajectory}: {num_trunk} tokens with the prompt, but"
                f" the judge has {self._max_positions} positions; shorten prompts or responses"
            )


def _row_bounds(request: JudgeRequest) -> npt.NDArray[np.int64]:
    """Trajectory s owns the rows bounds[s] : bounds[s + 1]. [S + 1]"""
    return np.cumsum([0, *(len(response) for response in request.responses)], dtype=np.int64)
