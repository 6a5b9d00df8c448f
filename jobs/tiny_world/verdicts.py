"""How well a reward model tells valid proposals from invalid ones, against the oracle. Knows nothing of Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from jobs.tiny_world.reward import RewardModel, judge_prompt_ids
from jobs.tiny_world.training import generate, pad_right, prompt_ids
from vcrd_ray.tiny.oracle import branch_validity
from vcrd_ray.tiny.world import Problem


@torch.inference_mode()
def redraw(
    proposer: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
    response: Sequence[int],
    *,
    temperature: float,
) -> list[int]:
    """At each position of a response, one draw from the proposer under the same prefix."""
    prompt = prompt_ids(tokenizer, problem.question)
    logits = proposer(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return torch.multinomial((logits / temperature).softmax(-1), 1).flatten().tolist()


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """One entry a proposal: a token put after the true prefix of a rollout."""

    scores: Float[Tensor, " n"]
    valid: Bool[Tensor, " n"]
    """The oracle's verdict."""
    at_step_end: Bool[Tensor, " n"]
    """Whether the rollout's own token there is a line break or the last token before one."""

    def auc(self, *, at_step_end: bool) -> float:
        """Chance that a valid proposal scores above an invalid one, ties one half."""
        here = self.at_step_end == at_step_end
        right = self.scores[here & self.valid]
        wrong = self.scores[here & ~self.valid].sort().values.contiguous()
        below = torch.searchsorted(wrong, right, right=False)
        not_above = torch.searchsorted(wrong, right, right=True)
        return ((below + not_above).double().mean() / (2 * len(wrong))).item()


@torch.inference_mode()
def judge_proposals(
    judge: RewardModel,
    proposer: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    *,
    seed: int,
) -> Verdicts:
    """One rollout a problem; at each position its own token and one more draw of its model."""
    torch.manual_seed(seed)
    line_break = tokenizer.encode("\n", add_special_tokens=False)[0]
    rows, valid, at_step_end = [], [], []
    for problem, response in zip(problems, generate(proposer, tokenizer, problems, temperature=1.0), strict=True):
        drawn = redraw(proposer, tokenizer, problem, response, temperature=1.0)
        judge_prompt = judge_prompt_ids(tokenizer, problem.question)
        for position, (own, other) in enumerate(zip(response, drawn, strict=True)):
            for proposal in {own, other} - set(tokenizer.all_special_ids):
                rows.append([*judge_prompt, *response[:position], proposal])
                valid.append(branch_validity(problem, response, position, proposal, tokenizer))
                at_step_end.append(line_break in response[position : position + 2])
    scores = []
    for begin in range(0, len(rows), 500):
        part = rows[begin : begin + 500]
        last = torch.tensor([len(row) - 1 for row in part])
        logits = judge(pad_right(part, tokenizer.pad_token_id))
        scores.append(logits[torch.arange(len(part)), last].sigmoid())
    return Verdicts(
        scores=torch.cat(scores),
        valid=torch.tensor(valid),
        at_step_end=torch.tensor(at_step_end),
    )
