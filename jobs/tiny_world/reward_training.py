"""How the tiny world's reward model is made: the teacher, trained on errors of the proposers. Knows nothing of Ray."""

import copy
import logging
import random
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from jobs.tiny_world.reward import RewardModel, labelled, reward_loss
from jobs.tiny_world.training import TrainingPlan, generate
from jobs.tiny_world.verdicts import redraw
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.world import PRETRAIN_SEED, Problem, make_problem, make_problems, sample_solution

logger = logging.getLogger(__name__)

REWARD_PLAN = TrainingPlan(num_updates=1200, batch_size=32, learning_rate=1e-3)
NUM_ROLLOUTS = 2000
ROLLOUT_TEMPERATURE = 1.2
"""Hot, so that the weak teacher's rollouts hold enough errors."""


class Corruption:
    """Draws tokens that might stand for others: a digit mostly for a digit, else any token of solutions."""

    def __init__(self, config: WorldConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        self._digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"]
        self._alternatives = solution_tokens(config, tokenizer)

    def draw(self, token: int, rng: random.Random) -> int:
        digit = token in self._digits and rng.random() < 0.8
        return rng.choice(self._digits if digit else self._alternatives)


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
            branches = [
                proposal if rng.random() < 0.5 else corruption.draw(token, rng)
                for token, proposal in zip(response, proposals, strict=True)
            ]
            batch.append(labelled(problem, response, branches, tokenizer))
        for _ in range(plan.batch_size - len(batch)):
            problem = make_problem(config, seed=seed, index=index)
            index += 1
            solution = sample_solution(problem, rng, num_ways=config.num_ways)
            response = tokenizer.encode(solution, add_special_tokens=False)
            branches = [corruption.draw(token, rng) for token in response]
            batch.append(labelled(problem, response, branches, tokenizer))
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
