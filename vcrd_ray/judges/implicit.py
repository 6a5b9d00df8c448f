"""Implicit process rewards, as PRIME: the log-ratio of two language models at every token.

r(c, a) = sigmoid(beta * (ln pi_model(a | c) - ln pi_reference(a | c))), where the reference is what the model was trained
from. One forward of each model gives the distribution behind every prefix, so the trajectory's token and the proposal are
read at the same place and no branches are needed. The response goes in as the policy's own token ids, behind the model's
own chat prompt. Trained on answers only: the models spread the credit over tokens by themselves.

Layout on disk: two directories with config.json and safetensors of causal models of one vocabulary; the tokenizer is the
first one's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import ModelError
from vcrd_ray.judges import IMPLICIT_CHUNK_TOKENS, Judge, JudgeProfile
from vcrd_ray.judges.checkpoint import judge_fingerprint
from vcrd_ray.judges.language_model import LanguageModel, load_language_model
from vcrd_ray.judges.self_check import largest_difference
from vcrd_ray.method.fused import fused_token_logp
from vcrd_ray.models.checkpoint_files import load_tokenizer, model_fingerprint
from vcrd_ray.models.packing import batches_within_budget
from vcrd_ray.types import FloatArray, IntArray, JudgeRequest, JudgeScores, StepSolution

_CACHED_PROMPTS = 4096


def load_implicit_judge(
    path: str | Path,
    *,
    reference: str | Path,
    beta: float,
    dtype: str,
    device: str | torch.device,
    max_batch_tokens: int,
) -> ImplicitJudge:
    """Judge of two checkpoint directories, both backbones in `dtype`, both heads in float32.

    Raises:
        ModelError: a directory does not hold a causal model, or the two have different vocabularies.
    """
    directories = Path(path), Path(reference)
    models = [load_language_model(directory, dtype=dtype, device=device) for directory in directories]
    sizes = [len(model.head) for model in models]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"judge {directories[0]}: its vocabulary has {sizes[0]} tokens, that of its reference {directories[1]}"
            f" {sizes[1]}; judge.reference must be the model that judge.path was trained from"
        )
    return ImplicitJudge(
        model=models[0],
        reference=models[1],
        tokenizer=load_tokenizer(directories[0], pads=False),
        beta=beta,
        profile=JudgeProfile(
            fingerprint=judge_fingerprint(
                directories[0], "implicit", dtype, float(beta), model_fingerprint(directories[1])
            ),
            family="implicit",
            scores="token",
            reads="at every token, as a log-ratio of two models",
            trained_on="answers; it assigns credit to tokens by itself",
        ),
        max_batch_tokens=max_batch_tokens,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Asked:
    """One input, and tokens that its last T ids compete with."""

    ids: IntArray
    """Prompt and continuation. [n]"""
    chosen: IntArray
    """Tokens whose log-ratio is wanted in place of each of the last T ids. [T, k]"""

    @property
    def num_read(self) -> int:
        """Ids that go through the models: nothing is read behind the last."""
        return len(self.ids) - 1


class ImplicitJudge(Judge):
    """Two language models whose log-ratio is the judge's logit."""

    def __init__(
        self,
        *,
        model: LanguageModel,
        reference: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        beta: float,
        profile: JudgeProfile,
        max_batch_tokens: int,
    ) -> None:
        """Take two models of one vocabulary, loaded and on one device.

        Args:
            model: the reward model.
            reference: what it was trained from.
            tokenizer: the reward model's: its chat template, if it has one, makes the prompt.
            beta: scale of the log-ratio.
            profile: what the judge says of itself.
            max_batch_tokens: tokens of one forward, padding included; a longer input goes through alone.
        """
        self.profile = profile
        self._models = tuple(replace(m, head=m.head.float()) for m in (model, reference))
        self._tokenizer = tokenizer
        self._beta = beta
        self._max_batch_tokens = max_batch_tokens
        self._prompt = lru_cache(maxsize=_CACHED_PROMPTS)(self._prompt_ids)

    @torch.inference_mode()
    def score(self, request: JudgeRequest) -> JudgeScores:
        """Logits of every trajectory token and of every proposal, from one forward of each model.

        Raises:
            ModelError: a token without an embedding, or a trajectory beyond the judge's positions.
        """
        start = time.perf_counter()
        asked = self._asked(request)
        logits = np.concatenate([np.zeros((0, 2), dtype=np.float32), *self._log_ratios("trajectory", asked)])
        return JudgeScores(
            trunk_logit=logits[:, 0].copy(),
            branch_logit=logits[:, 1].copy(),
            num_tokens=len(self._models) * sum(a.num_read for a in asked if len(a.chosen)),
            seconds=time.perf_counter() - start,
        )

    @torch.inference_mode()
    def score_separately(self, request: JudgeRequest, rows: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """Logits of some rows' own tokens and proposals, each by forwards over its prefix alone. [rows] each"""
        asked = self._asked(request)
        bounds = np.cumsum([0, *(len(a.chosen) for a in asked)])
        found = np.empty((len(rows), 2), dtype=np.float32)
        for place, row in enumerate(rows):
            s = int(np.searchsorted(bounds, row, side="right")) - 1
            t = row - int(bounds[s])
            prefix = asked[s].ids[: len(asked[s].ids) - len(asked[s].chosen) + t]
            found[place] = self._ratio([prefix], np.zeros(1, np.int64), np.array([-1]), asked[s].chosen[t : t + 1])[0]
        return found[:, 0], found[:, 1]

    @torch.inference_mode()
    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        """Log-ratio of each step: the sum over the step's tokens, newline included, tokenised alone. [solutions] of [steps]

        That is the difference of the sums up to the step's end and up to its beginning.

        Raises:
            ModelError: as `score`.
        """
        parts = [[np.asarray(self._encode(f"{step}\n"), dtype=np.int32) for step in s.steps] for s in solutions]
        asked = []
        for solution, steps in zip(solutions, parts, strict=True):
            prompt = self._prompt(solution.question)
            ids = np.concatenate([prompt, *steps])
            asked.append(_Asked(ids=ids, chosen=ids[len(prompt) :, None]))
        scores = []
        for steps, ratios in zip(parts, self._log_ratios("solution", asked), strict=True):
            ends = np.cumsum([len(step) for step in steps], dtype=np.int64)
            upto = np.concatenate([[0.0], np.cumsum(ratios[:, 0], dtype=np.float64)])
            scores.append(np.diff(upto[np.concatenate([[0], ends])]).astype(np.float32))
        return scores

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        """Largest difference in logit to forwards over prefixes alone, over random rows, differing proposals first.

        Infinite where a logit is no number; 0 where there is nothing to compare.
        """
        responses = np.concatenate([np.zeros(0, np.int32), *request.responses])
        proposals = np.concatenate([np.zeros(0, np.int32), *request.proposals])
        return largest_difference(
            self.score(request),
            partial(self.score_separately, request),
            differs=responses != proposals,
            count=num_branches,
            seed=seed,
        )

    def _asked(self, request: JudgeRequest) -> list[_Asked]:
        return [
            _Asked(
                ids=np.concatenate([self._prompt(question), response]), chosen=np.stack([response, proposal], axis=1)
            )
            for question, response, proposal in zip(
                request.questions, request.responses, request.proposals, strict=True
            )
        ]

    def _log_ratios(self, what: str, asked: Sequence[_Asked]) -> list[FloatArray]:
        """beta times the log-ratio of what each input asks for. [inputs] of [T, k]"""
        for s, a in enumerate(asked):
            for model in self._models:
                model.check(f"{what} {s}", np.append(a.ids, a.chosen), num_positions=len(a.ids))
        found = [np.zeros(a.chosen.shape, dtype=np.float32) for a in asked]
        some = [i for i, a in enumerate(asked) if len(a.chosen)]
        for places in batches_within_budget([asked[i].num_read for i in some], self._max_batch_tokens):
            batch = [some[place] for place in places]
            lengths = [len(asked[i].chosen) for i in batch]
            rows = np.repeat(np.arange(len(batch)), lengths)
            columns = [asked[i].num_read - n + np.arange(n) for i, n in zip(batch, lengths, strict=True)]
            ratio = self._ratio(
                [asked[i].ids[:-1] for i in batch],
                rows,
                np.concatenate(columns),
                np.concatenate([asked[i].chosen for i in batch]),
            )
            for i, part in zip(batch, np.split(ratio, np.cumsum(lengths)[:-1]), strict=True):
                found[i] = part
        return found

    def _ratio(
        self,
        inputs: Sequence[IntArray],
        rows: npt.NDArray[np.int64],
        columns: npt.NDArray[np.int64],
        chosen: IntArray,
    ) -> FloatArray:
        """One forward of each model; the tokens `chosen` behind the ids at (rows, columns). [n, k]"""
        device = self._models[0].head.device
        at = torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)
        tokens = torch.from_numpy(chosen.astype(np.int64)).to(device)
        # One after the other: the states of both never exist at once.
        model, reference = (
            fused_token_logp(
                hidden=m.states(inputs)[at],
                head=m.head,
                tokens=tokens,
                vocab_size=len(m.head),
                chunk_rows=IMPLICIT_CHUNK_TOKENS,
            )
            for m in self._models
        )
        ratio: FloatArray = (self._beta * (model - reference)).cpu().numpy()
        return ratio

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _prompt_ids(self, question: str) -> IntArray:
        if self._tokenizer.chat_template is None:
            return np.asarray(self._tokenizer.encode(f"{question}\n"), dtype=np.int32)
        messages = [{"role": "user", "content": question}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return np.asarray(self._encode(text), dtype=np.int32)
