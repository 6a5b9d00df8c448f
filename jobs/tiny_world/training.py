"""Examples, models and the loop of the tiny world's policies, in plain torch. Knows nothing of Ray or of recipes."""

import copy
import logging
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.world import Problem, make_problem, sample_solution

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 64
IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training sequence; the first `num_context` tokens carry no loss."""

    ids: list[int]
    num_context: int


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Size of a Qwen2 model with heads of 32."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate: int

    def build(self, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Qwen2ForCausalLM:
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=32 * self.num_heads,
                intermediate_size=self.intermediate,
                num_hidden_layers=self.num_layers,
                num_attention_heads=self.num_heads,
                num_key_value_heads=self.num_kv_heads,
                max_position_embeddings=tokenizer.model_max_length,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        model.generation_config = GenerationConfig(
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        return model


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """AdamW with linear warm-up and cosine decay to a tenth."""

    num_updates: int
    batch_size: int
    learning_rate: float
    warmup: int = 50

    def learning_rate_at(self, update: int) -> float:
        if update < self.warmup:
            return self.learning_rate * (update + 1) / self.warmup
        share = (update - self.warmup) / max(1, self.num_updates - self.warmup)
        return self.learning_rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


def prompt_ids(tokenizer: PreTrainedTokenizerFast, question: str) -> list[int]:
    """The policy's prompt: chat template with the question as the user's turn."""
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(ids)


def response_ids(tokenizer: PreTrainedTokenizerFast, solution: str) -> list[int]:
    """A solution's tokens with EOS."""
    return [*tokenizer.encode(solution, add_special_tokens=False), tokenizer.eos_token_id]


def chat_examples(config: WorldConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Iterator[Example]:
    """Endless stream of prompts with one sampled solution each."""
    rng = random.Random(seed)
    index = 0
    while True:
        problem = make_problem(config, seed=seed, index=index)
        index += 1
        prompt = prompt_ids(tokenizer, problem.question)
        solution = sample_solution(problem, rng, num_ways=config.num_ways)
        yield Example(ids=prompt + response_ids(tokenizer, solution), num_context=len(prompt))


def raw_examples(config: WorldConfig, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Iterator[Example]:
    """Endless stream of bare text: unrelated lines of solutions, or a question and its solution."""
    rng = random.Random(seed)
    index = 0

    def next_problem() -> tuple[str, str]:
        nonlocal index
        problem = make_problem(config, seed=seed, index=index)
        index += 1
        return problem.question, sample_solution(problem, rng, num_ways=config.num_ways)

    while True:
        if rng.random() < 0.5:
            text = "\n".join(next_problem())
        else:
            text = "\n".join(rng.choice(next_problem()[1].splitlines()[:-1]) for _ in range(4))
        yield Example(ids=tokenizer.encode(text, add_special_tokens=False), num_context=1)


def pad_right(rows: Sequence[Sequence[int]], fill: int) -> Int[Tensor, "n t"]:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def language_model_loss(model: nn.Module, examples: Sequence[Example], *, pad_id: int) -> Float[Tensor, ""]:
    """Mean cross-entropy over all tokens behind the contexts."""
    ids = pad_right([e.ids for e in examples], pad_id)
    labels = pad_right([[IGNORED_LABEL] * e.num_context + e.ids[e.num_context :] for e in examples], IGNORED_LABEL)
    # Padding stands on the right and attention is causal: no mask is needed.
    logits = model(input_ids=ids).logits[:, :-1]
    targets = labels[:, 1:].flatten()
    return F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED_LABEL)


def train_language_model(
    model: Qwen2ForCausalLM,
    examples: Iterator[Example],
    plan: TrainingPlan,
    *,
    pad_id: int,
    stop_after: Callable[[int], bool] | None = None,
) -> None:
    """Trains in place; `stop_after` is asked after each update, by the number of updates done, whether to end."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    model.train()
    for update in range(plan.num_updates):
        optimizer.param_groups[0]["lr"] = plan.learning_rate_at(update)
        batch = [next(examples) for _ in range(plan.batch_size)]
        loss = language_model_loss(model, batch, pad_id=pad_id)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if update % 100 == 99:
            logger.info("update %d: loss %.4f", update + 1, loss.item())
        if stop_after and stop_after(update + 1):
            return


@torch.inference_mode()
def generate(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[Problem],
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    batch_size: int = 250,
) -> list[list[int]]:
    """One response a problem, EOS kept; temperature 0 is greedy."""
    sampling = (
        {"do_sample": False}
        if temperature == 0.0
        else {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    )
    was_training = model.training
    model.eval()
    responses = []
    for begin in range(0, len(problems), batch_size):
        prompts = [prompt_ids(tokenizer, p.question) for p in problems[begin : begin + batch_size]]
        batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        output = model.generate(**batch, **sampling, max_new_tokens=MAX_NEW_TOKENS)
        for row in output[:, batch["input_ids"].shape[1] :].tolist():
            end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else None
            responses.append(row[:end])
    model.train(was_training)
    return responses


def is_right(problem: Problem, response: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether the last line of a response is the right answer."""
    text = tokenizer.decode(list(response), skip_special_tokens=True)
    return text.splitlines()[-1:] == [f"#### {problem.answer}"]


def greedy_accuracy(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]) -> float:
    responses = generate(model, tokenizer, problems)
    return sum(map(lambda p, r: is_right(p, r, tokenizer), problems, responses)) / len(problems)


def epochs(examples: Sequence[Example], *, seed: int) -> Iterator[Example]:
    """The examples again and again, each time in another order."""
    rng = random.Random(seed)
    while True:
        yield from rng.sample(examples, len(examples))


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Writes a Hugging Face folder in bfloat16; the model itself stays as it is."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> Qwen2ForCausalLM:
    """A shipped policy in float32, ready for evaluation."""
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
