"""Process reward models with a two-label head, as Qwen2.5-Math-PRM: read at a separator behind the token.

The published models saw chat-formatted solutions with `<extra_0>` behind each step, and their head was trained there only;
score = softmax over (bad, good), label good, so its logit is the difference of the two. r(c, a) is therefore read at a
separator of its own behind a, for both proposals alike: the trajectory's token y_t gets a branch [separator], the proposal
a branch [a, separator]. Steps that are complete carry their separator in the trunk, as in training; where y_t ends a step,
its score is read there and needs no branch. A step ends with a token that contains a blank line; the authors cut the text
there and drop the blank line, which stays here, because the policy's own token ids are what is judged.

Layout on disk: config.json (Qwen2) and tokenizer; safetensors of the model under `model.`, and `score.0.weight` [d, d],
`score.0.bias` [d], `score.2.weight` [2, d], `score.2.bias` [2].
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import ModelError
from vcrd_ray.judges import JudgeProfile
from vcrd_ray.judges.attention import AttentionKind
from vcrd_ray.judges.checkpoint import build_backbone, judge_fingerprint, read_model_config, read_tensors, take_tensor
from vcrd_ray.judges.packed import JudgeFormat, PackedJudge
from vcrd_ray.judges.packed_trees import BoolArray, Tree, branch_positions
from vcrd_ray.models.checkpoint_files import load_tokenizer, special_ids, token_ids_with, tokenizer_fingerprint
from vcrd_ray.types import IntArray, StepSolution

_NEEDED_BY = "a two-label judge (Qwen2.5-Math-PRM layout) needs score.0 [d, d] and score.2 [2, d] with their biases"
_CACHED_PROMPTS = 4096
_STEP_END = "\n\n"


def load_qwen_prm_judge(
    path: str | Path,
    *,
    dtype: str,
    device: str | torch.device,
    max_batch_tokens: int,
    separator: str,
    system: str,
    policy_tokenizer: PreTrainedTokenizerBase,
    attention: AttentionKind | Literal["auto"],
) -> PackedJudge:
    """Judge of a checkpoint directory, for token ids of a policy.

    Raises:
        ModelError: the directory does not hold such a judge, or its tokenizer has no separator or chat template.
    """
    directory = Path(path)
    config, tensors = read_model_config(directory, packed=True), read_tensors(directory)
    d = config.hidden_size
    head = [
        take_tensor(directory, tensors, name, shape=shape, needed_by=_NEEDED_BY).to(device)
        for name, shape in (
            ("score.0.weight", (d, d)),
            ("score.0.bias", (d,)),
            ("score.2.weight", (2, d)),
            ("score.2.bias", (2,)),
        )
    ]
    tokenizer = load_tokenizer(directory, pads=False)
    if separator not in tokenizer.get_vocab():
        raise ModelError(
            f"judge {directory}: its tokenizer has no token {separator!r}; set judge.separator to its separator"
        )
    if tokenizer.chat_template is None:
        raise ModelError(f"judge {directory}: its tokenizer has no chat template, in which its prompt is written")
    return PackedJudge(
        backbone=build_backbone(directory, config, tensors, dtype=dtype).to(device),
        head=two_label_head(*head),
        reading=SeparatorFormat(
            tokenizer=tokenizer,
            separator=separator,
            system=system,
            step_ends=token_ids_with(policy_tokenizer, _STEP_END),
            special_ids=special_ids(policy_tokenizer),
        ),
        profile=JudgeProfile(
            fingerprint=judge_fingerprint(
                directory, "qwen_prm", dtype, separator, system, tokenizer_fingerprint(policy_tokenizer)
            ),
            family="qwen_prm",
            scores="token",
            reads="at a separator behind the token",
            trained_on="the separator behind a step",
        ),
        max_batch_tokens=max_batch_tokens,
        attention=attention,
    )


def two_label_head(
    first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
) -> Callable[[Tensor], Tensor]:
    """h -> z_good - z_bad of z = W2 relu(W1 h + b1) + b2, in float32."""
    inner, inner_bias = first.detach().float(), first_bias.detach().float()
    row = (second[1] - second[0]).detach().float()
    offset = (second_bias[1] - second_bias[0]).detach().float()
    return lambda hidden: torch.relu(hidden @ inner.T + inner_bias) @ row + offset


class SeparatorFormat(JudgeFormat):
    """Chat prompt, response with a separator behind each complete step; branches that end in a separator."""

    def __init__(
        self,
        *,
        tokenizer: PreTrainedTokenizerBase,
        separator: str,
        system: str,
        step_ends: Collection[int],
        special_ids: Collection[int],
    ) -> None:
        """Take the judge's tokenizer, and the policy's tokens that end a step or get no branch."""
        self._tokenizer = tokenizer
        self._separator_text = separator
        self._separator = int(tokenizer.convert_tokens_to_ids(separator))
        self._system = system
        self._step_ends = np.fromiter(step_ends, dtype=np.int64)
        self._special_ids = frozenset(special_ids)
        self._prompt = lru_cache(maxsize=_CACHED_PROMPTS)(self._prompt_ids)

    def tree(self, question: str, response: IntArray, proposal: IntArray) -> Tree:
        prompt = self._prompt(question)
        closes: BoolArray = np.isin(response, self._step_ends)
        judged = branch_positions(response, proposal, self._special_ids)
        # A token that is not judged is read without a separator of its own: nobody uses its score.
        own_branch = ~closes & ~np.isin(response, np.fromiter(self._special_ids, dtype=np.int64))
        # Where each response token stands, when a separator follows each that closes a step.
        at = len(prompt) + np.arange(len(response)) + np.concatenate([[0], np.cumsum(closes)[:-1]])
        n = len(prompt) + len(response) + int(closes.sum())
        trunk = np.full(n, self._separator, dtype=np.int32)
        trunk[: len(prompt)] = prompt
        trunk[at] = response
        length = own_branch.astype(np.int64) + 2 * judged
        stop = n + np.cumsum(length)
        start = stop - length
        size = int(length.sum())
        branch_ids = np.full(size, self._separator, dtype=np.int32)
        num_seen, branch = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.int32)
        other_start = start + own_branch
        for first, rows, sees, number in (
            (start, own_branch, at + 1, 0),
            (other_start, judged, at, 1),
            (other_start + 1, judged, at, 1),
        ):
            places = (first - n)[rows]
            num_seen[places] = sees[rows]
            branch[places] = 2 * np.flatnonzero(rows) + number
        branch_ids[(other_start - n)[judged]] = proposal[judged]
        own = np.where(closes, at + 1, np.where(own_branch, start, at))
        other = np.where(judged, other_start + 1, own)
        return Tree(
            trunk=trunk,
            branch_ids=branch_ids,
            branch=branch,
            num_seen=num_seen,
            trunk_index=own.astype(np.int32),
            branch_index=other.astype(np.int32),
        )

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """The steps with a separator behind each, as an assistant's message in the chat template."""
        content = "".join(f"{step}{self._separator_text}" for step in solution.steps)
        messages = [*self._messages(solution.question), {"role": "assistant", "content": content}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
        ids = np.asarray(self._tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)
        return ids, np.flatnonzero(ids == self._separator).astype(np.int32)[-len(solution.steps) :]

    def _prompt_ids(self, question: str) -> IntArray:
        text = self._tokenizer.apply_chat_template(self._messages(question), tokenize=False, add_generation_prompt=True)
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def _messages(self, question: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": self._system}, {"role": "user", "content": question}]
