"""Trains and measures the tiny world's reward model against the oracle. Knows nothing of Ray.

The layout is that of Skywork-o1-Open-PRM: a Qwen2 backbone and one linear head `v_head.summary`;
the score of a token is `sigmoid(v_head(h))`, h its last hidden state after the final norm; the
prompt is `bos + problem + "\\n"`.
"""

import copy
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from jobs.tiny_world.training import (
    TrainingPlan,
    generate,
    pad_right,
    prompt_ids,
    save,
)
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.oracle import branch_validity, token_validity
from vcrd_ray.tiny.world import PRETRAIN_SEED, Problem, make_problem, make_problems, sample_solution

logger = logging.getLogger(__name__)

NO_LABEL = -1

REWARD_PLAN = TrainingPlan(num_updates=1200, batch_size=32, learning_rate=1e-3)
NUM_ROLLOUTS = 2000
ROLLOUT_TEMPERATURE = 1.2
"""Hot, so that the weak teacher's rollouts hold enough errors."""


class RewardModel(nn.Module):
    """Backbone and value head; state keys are those of the shipped file."""

    def __init__(self, backbone: Qwen2ForCausalLM) -> None:
        super().__init__()
        self.causal = backbone
        self.v_head = nn.ModuleDict({"summary": nn.Linear(backbone.config.hidden_size, 1)})

    def forward(
        self,
        ids: Int[Tensor, "n t"],
        *,
        positions: Int[Tensor, "n t"] | None = None,
        allowed: Bool[Tensor, "n t t"] | None = None,
    ) -> Float[Tensor, "n t"]:
        """Logit of every token's score; causal unless `allowed` says who sees whom. Padding on the right only."""
        mask = None
        if allowed is not None:
            # Additive and of float type: a boolean mask is not understood by every attention.
            mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
        hidden = self.causal.model(input_ids=ids, position_ids=positions, attention_mask=mask).last_hidden_state
        return self.v_head["summary"](hidden).squeeze(-1)

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
        """Writes a Hugging Face folder in bfloat16, head included in `model.safetensors`."""
        self.causal.config.trained_on = "every token"  # what the judge says of itself
        save(self.causal, tokenizer, folder)
        file = folder / "model.safetensors"
        head = {f"v_head.{k}": v.to(torch.bfloat16) for k, v in self.v_head.state_dict().items()}
        save_file({**load_file(file), **head}, file, metadata={"format": "pt"})

    @staticmethod
    def load(folder: Path) -> "RewardModel":
        """A shipped model in float32, ready for evaluation."""
        backbone = Qwen2ForCausalLM(Qwen2Config.from_pretrained(folder, dtype=torch.float32))
        model = RewardModel(backbone)
        state = {k: v.float() for k, v in load_file(folder / "model.safetensors").items()}
        head = {k.removeprefix("v_head."): state.pop(k) for k in list(state) if "v_head." in k}
        model.v_head.load_state_dict(head)
        # Tied embeddings: the file has no lm_head of its own.
        backbone.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
        return model.eval()


@dataclass(frozen=True, kw_only=True)
class LabelledResponse:
    """A response with the oracle's verdict on each token, and on one other token at each position.

    The three lists beside `context` are as long as the response; `NO_LABEL` stands where no verdict is wanted.
    """

    context: list[int]
    response: list[int]
    labels: list[int]
    leaves: list[int]
    """What might have stood there instead."""
    leaf_labels: list[int]


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A batch of responses, each with its leaves behind it in the same row."""

    ids: Int[Tensor, "n t"]
    positions: Int[Tensor, "n t"]
    """A leaf has the position of the token it might replace."""
    allowed: Bool[Tensor, "n t t"]
    """A leaf sees what stands before that token, and itself."""
    labels: Int[Tensor, "n t"]


def judge_prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    return tokenizer.encode(f"{tokenizer.bos_token}{question}\n", add_special_tokens=False)


def labelled(
    problem: Problem,
    response: Sequence[int],
    leaves: Sequence[int],
    tokenizer: PreTrainedTokenizerFast,
) -> LabelledResponse:
    """The oracle's verdicts. A response ends before EOS, which is not judged; nor are special tokens as leaves."""
    count = len(response) - (response[-1:] == [tokenizer.eos_token_id])
    judged = list(response[:count])
    special = set(tokenizer.all_special_ids)
    leaf_labels = [
        NO_LABEL if leaf in special else int(branch_validity(problem, judged, position, leaf, tokenizer))
        for position, leaf in enumerate(leaves[:count])
    ]
    return LabelledResponse(
        context=judge_prompt_ids(tokenizer, problem.question),
        response=judged,
        labels=[int(valid) for valid in token_validity(problem, judged, tokenizer)],
        leaves=list(leaves[:count]),
        leaf_labels=leaf_labels,
    )


def pack(batch: Sequence[LabelledResponse], *, pad_id: int) -> Packed:
    """Trunks padded to one width, then leaves padded to one width."""
    trunks = pad_right([r.context + r.response for r in batch], pad_id)
    leaves = pad_right([r.leaves for r in batch], pad_id)
    trunk_labels = pad_right([[NO_LABEL] * len(r.context) + r.labels for r in batch], NO_LABEL)
    leaf_labels = pad_right([r.leaf_labels for r in batch], NO_LABEL)
    columns = torch.arange(trunks.shape[1])
    begins = torch.tensor([len(r.context) for r in batch])
    branch_positions = begins[:, None] + torch.arange(leaves.shape[1])
    width = trunks.shape[1] + leaves.shape[1]
    # Every token sees itself: a row of padding that saw nothing would be NaN.
    allowed = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)
    allowed[:, : len(columns), : len(columns)] = columns[:, None] >= columns
    allowed[:, len(columns) :, : len(columns)] = branch_positions[:, :, None] > columns
    return Packed(
        ids=torch.cat([trunks, leaves], 1),
        positions=torch.cat([columns.expand(len(batch), -1), branch_positions], 1),
        allowed=allowed,
        labels=torch.cat([trunk_labels, leaf_labels], 1),
    )


def reward_loss(model: RewardModel, batch: Sequence[LabelledResponse], *, pad_id: int) -> Float[Tensor, ""]:
    """Binary cross-entropy, mean over all labelled tokens, leaves included."""
    packed = pack(batch, pad_id=pad_id)
    logits = model(packed.ids, positions=packed.positions, allowed=packed.allowed)
    judged = packed.labels != NO_LABEL
    return F.binary_cross_entropy_with_logits(logits[judged], packed.labels[judged].float())


class Corruption:
    """Draws tokens that might stand for others: a digit mostly for a digit, else any token of solutions."""

    def __init__(self, config: WorldConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        self._digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"]
        self._alternatives = solution_tokens(config, tokenizer)

    def draw(self, token: int, rng: random.Random) -> int:
        digit = token in self._digits and rng.random() < 0.8
        return rng.choice(self._digits if digit else self._alternatives)


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


def make_reward_model(
    config: WorldConfig,
    tokenizer: PreTrainedTokenizerFast,
    *,
    teacher: Qwen2ForCausalLM,
    proposers: Sequence[Qwen2ForCausalLM],
    seed: int,
) -> RewardModel:
    """A judge that starts as the teacher and has seen the errors of the proposers."""
    torch.manual_seed(seed)
    problems = make_problems(config, seed=PRETRAIN_SEED, count=NUM_ROLLOUTS)
    rollouts = []
    for proposer in proposers:
        responses = generate(proposer, tokenizer, problems, temperature=ROLLOUT_TEMPERATURE)
        for problem, response in zip(problems, responses, strict=True):
            proposals = redraw(proposer, tokenizer, problem, response, temperature=ROLLOUT_TEMPERATURE)
            rollouts.append((problem, response, proposals))
    model = RewardModel(copy.deepcopy(teacher))
    train_reward_model(model, config, tokenizer, rollouts, REWARD_PLAN, seed=PRETRAIN_SEED)
    return model.eval()


def train_reward_model(
    model: RewardModel,
    config: WorldConfig,
    tokenizer: PreTrainedTokenizerFast,
    rollouts: Sequence[tuple[Problem, list[int], list[int]]],
    plan: TrainingPlan,
    *,
    seed: int,
) -> None:
    """Trains in place. Half of a batch are rollouts with their proposals, half solutions; both with corruptions."""
    rng = random.Random(seed)
    corruption = Corruption(config, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98))
    index = 0
    model.train()
    for update in range(plan.num_updates):
        optimizer.param_groups[0]["lr"] = plan.learning_rate_at(update)
        batch = []
        for problem, response, proposals in rng.sample(rollouts, plan.batch_size // 2):
            leaves = [
                proposal if rng.random() < 0.5 else corruption.draw(token, rng)
                for token, proposal in zip(response, proposals, strict=True)
            ]
            batch.append(labelled(problem, response, leaves, tokenizer))
        for _ in range(plan.batch_size - len(batch)):
            problem = make_problem(config, seed=seed, index=index)
            index += 1
            solution = sample_solution(problem, rng, num_ways=config.num_ways)
            response = tokenizer.encode(solution, add_special_tokens=False)
            leaves = [corruption.draw(token, rng) for token in response]
            batch.append(labelled(problem, response, leaves, tokenizer))
        loss = reward_loss(model, batch, pad_id=tokenizer.pad_token_id)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % 100 == 99:
            logger.info("reward model, update %d: loss %.4f", update + 1, loss.item())


def solution_tokens(config: WorldConfig, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Every token that solutions use, EOS left out, in order of id."""
    rng = random.Random(0)
    texts = [sample_solution(make_problem(config, seed=0, index=i), rng) for i in range(300)]
    return sorted({i for text in texts for i in tokenizer.encode(text, add_special_tokens=False)})


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
