"""Process reward models with a linear value head, as Skywork-o1-Open-PRM: read at the token itself.

r(c, a) = sigmoid(v_head(h)), h = last hidden state, after the final norm, at the token a, on the input
bos + problem + newline + response prefix + a (github.com/SkyworkAI/skywork-o1-prm-inference). The response goes in as the
policy's own token ids. The published models were trained at step ends only: scores inside a step extrapolate.

Layout on disk: config.json and tokenizer of a causal model; its safetensors, plus `v_head.summary.weight` [1, d] and
`v_head.summary.bias` [1].
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vcrd_ray.errors import ModelError
from vcrd_ray.judges import JudgeProfile
from vcrd_ray.judges.attention import AttentionKind
from vcrd_ray.judges.checkpoint import build_backbone, judge_fingerprint, read_model_config, read_tensors, take_tensor
from vcrd_ray.judges.packed import JudgeFormat, PackedJudge
from vcrd_ray.judges.packed_trees import Tree, branch_positions
from vcrd_ray.models.checkpoint_files import load_tokenizer
from vcrd_ray.types import IntArray, StepSolution

HEAD_WEIGHT, HEAD_BIAS = "v_head.summary.weight", "v_head.summary.bias"
_NEEDED_BY = f"a value-head judge (Skywork-o1-Open-PRM layout) needs {HEAD_WEIGHT!r} [1, d] and {HEAD_BIAS!r} [1]"

_CACHED_PROMPTS = 4096
"""Questions whose ids are kept: each comes back for both rollouts of a pair and in every epoch."""


def load_value_head_judge(
    path: str | Path,
    *,
    dtype: str,
    device: str | torch.device,
    special_ids: Collection[int],
    max_batch_tokens: int,
    attention: AttentionKind | Literal["auto"],
) -> PackedJudge:
    """Judge of a checkpoint directory, the backbone in `dtype` ("float32", "bfloat16").

    Raises:
        ModelError: the directory does not hold such a judge; says what is wrong and the cure.
    """
    directory = Path(path)
    config, tensors = read_model_config(directory, packed=True), read_tensors(directory)
    weight = take_tensor(directory, tensors, HEAD_WEIGHT, shape=(1, config.hidden_size), needed_by=_NEEDED_BY)
    bias = take_tensor(directory, tensors, HEAD_BIAS, shape=(1,), needed_by=_NEEDED_BY)
    tokenizer = load_tokenizer(directory, pads=False)
    if tokenizer.bos_token is None:
        raise ModelError(
            f"judge {directory}: its tokenizer has no bos_token, and the judge's prompt begins with"
            " it. Use the tokenizer files published with the judge (the policy's often have none),"
            " or set `bos_token` in tokenizer_config.json"
        )
    return PackedJudge(
        backbone=build_backbone(directory, config, tensors, dtype=dtype).to(device),
        head=linear_head(weight.to(device), bias.to(device)),
        reading=ValueHeadFormat(
            encode=partial(tokenizer.encode, add_special_tokens=False), bos=tokenizer.bos_token, special_ids=special_ids
        ),
        profile=value_head_profile(
            judge_fingerprint(directory, "value_head", dtype, sorted(special_ids)),
            trained_on=getattr(config, "trained_on", "the newline that ends a step"),
        ),
        max_batch_tokens=max_batch_tokens,
        attention=attention,
    )


def value_head_profile(fingerprint: str, *, trained_on: str) -> JudgeProfile:
    """What such a judge says of itself; config.json may name where it was trained as `trained_on`."""
    return JudgeProfile(
        fingerprint=fingerprint,
        family="value_head",
        scores="token",
        reads="at the token itself",
        trained_on=trained_on,
    )


def linear_head(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """h -> w h + b in float32 whatever the backbone's dtype: the method lives on ratios of scores."""
    row, offset = weight.detach().float()[0], bias.detach().float()[0]
    return lambda hidden: hidden @ row + offset


class ValueHeadFormat(JudgeFormat):
    """bos + problem + newline + response; one-token branches."""

    def __init__(self, *, encode: Callable[[str], Sequence[int]], bos: str, special_ids: Collection[int]) -> None:
        """Take text -> ids with nothing added, what a prompt begins with, and the tokens that get no branch."""
        self._encode = encode
        self._bos = bos
        self._special_ids = frozenset(special_ids)
        self._prompt = lru_cache(maxsize=_CACHED_PROMPTS)(self._prompt_ids)

    def tree(self, question: str, response: IntArray, proposal: IntArray) -> Tree:
        prompt = self._prompt(question)
        parents = np.flatnonzero(branch_positions(response, proposal, self._special_ids))
        own = len(prompt) + np.arange(len(response))
        other = own.copy()
        other[parents] = len(prompt) + len(response) + np.arange(len(parents))
        return Tree(
            trunk=np.concatenate([prompt, response]),
            branch_ids=proposal[parents],
            branch=np.arange(len(parents), dtype=np.int32),
            num_seen=(len(prompt) + parents).astype(np.int32),
            trunk_index=own.astype(np.int32),
            branch_index=other.astype(np.int32),
        )

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """Each step tokenised alone, a newline behind it, read at the newline."""
        parts = [self._prompt(solution.question)]
        newline = np.asarray(self._encode("\n"), dtype=np.int32)[-1:]
        for step in solution.steps:
            parts += [np.asarray(self._encode(step), dtype=np.int32), newline]
        ends = np.cumsum([len(part) for part in parts]) - 1
        return np.concatenate(parts), ends[2::2].astype(np.int32)

    def _prompt_ids(self, question: str) -> IntArray:
        return np.asarray(self._encode(f"{self._bos}{question}\n"), dtype=np.int32)
