"""Language models that write a verdict behind each step of a solution, as Math-Shepherd or RLHFlow: judges of whole steps.

score = softmax over the logits of the good and the bad verdict, so the logit is their difference (w_good - w_bad) . h at the
place that predicts the verdict. One causal pass over the whole conversation scores all steps. These models have tokenizers
of their own: they read the response's text, cut in steps at line breaks, and each response token gets the score of its step.

- math_shepherd (peiyi9979/math-shepherd-mistral-7b-prm): question, space, lines "Step i: ... ки"; read at each ки; verdicts
  as they are tokenised in "+ -".
- rlhflow (RLHFlow/Llama3.1-8B-PRM-*): a chat. User: question, space, first step; assistant: +; user: second step; and so on,
  earlier verdicts always good. Read where the verdict is predicted.

Layout on disk: config.json, tokenizer and safetensors of a causal model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vcrd_ray.judges import Judge, JudgeProfile
from vcrd_ray.judges.checkpoint import judge_fingerprint
from vcrd_ray.judges.language_model import LanguageModel, load_language_model
from vcrd_ray.judges.steps import step_of_tokens
from vcrd_ray.judges.verdict_formats import MathShepherdFormat, RlhflowFormat, VerdictFormat
from vcrd_ray.models.checkpoint_files import load_tokenizer, tokenizer_fingerprint
from vcrd_ray.models.packing import batches_within_budget
from vcrd_ray.types import FloatArray, IntArray, JudgeRequest, JudgeScores, StepSolution

Template = Literal["math_shepherd", "rlhflow"]

_PROBE = StepSolution(question="What is 1 + 1?", steps=("1 + 1 = 2", "The answer is 2."))


def load_step_tags_judge(
    path: str | Path,
    *,
    template: Template,
    good: str,
    bad: str,
    step_tag: str,
    policy_tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    device: str | torch.device,
    max_batch_tokens: int,
) -> StepTagsJudge:
    """Judge of a checkpoint directory, for token ids of a policy.

    Raises:
        ModelError: the directory does not hold a causal model, or its tokenizer does not fit the template.
    """
    directory = Path(path)
    model = load_language_model(directory, dtype=dtype, device=device)
    tokenizer = load_tokenizer(directory, pads=False)
    reading: VerdictFormat
    if template == "math_shepherd":
        reading = MathShepherdFormat(tokenizer, good=good, bad=bad, step_tag=step_tag)
        reads, identity = "at the tag behind a step", (good, bad, step_tag)
    else:
        reading = RlhflowFormat(tokenizer, good=good, bad=bad)
        reads, identity = "where the verdict behind a step is predicted", (good, bad, "")
    reading.steps(_PROBE)
    parts = ("step_tags", dtype, template, *identity, tokenizer_fingerprint(policy_tokenizer))
    return StepTagsJudge(
        model=model,
        reading=reading,
        policy_tokenizer=policy_tokenizer,
        profile=JudgeProfile(
            fingerprint=judge_fingerprint(directory, *parts),
            family="step_tags",
            scores="step",
            reads=reads,
            trained_on="the verdict behind a step",
        ),
        max_batch_tokens=max_batch_tokens,
    )


class StepTagsJudge(Judge):
    """A language model, and a template that says where its verdicts are read."""

    def __init__(
        self,
        *,
        model: LanguageModel,
        reading: VerdictFormat,
        policy_tokenizer: PreTrainedTokenizerBase,
        profile: JudgeProfile,
        max_batch_tokens: int,
    ) -> None:
        """Take a model that is loaded and on its device.

        Args:
            model: its head is used for the two verdicts only.
            reading: how solutions are written.
            policy_tokenizer: what responses are decoded with.
            profile: what the judge says of itself.
            max_batch_tokens: tokens of one forward, padding included; a longer input goes through alone.
        """
        self.profile = profile
        # The rest of the head is let go.
        verdicts = model.head[list(reading.verdicts)].float()
        self._model = replace(model, head=verdicts)
        self._difference: Float[Tensor, " d"] = verdicts[0] - verdicts[1]
        self._reading = reading
        self._policy_tokenizer = policy_tokenizer
        self._max_batch_tokens = max_batch_tokens

    def score(self, request: JudgeRequest) -> JudgeScores:
        """Each response token gets the logit of its step; NaN for proposals that differ, and where no line has text.

        Raises:
            ModelError: a response beyond the judge's positions.
        """
        start = time.perf_counter()
        solutions, indices = self._solutions(request)
        scores, num_tokens = self._score("trajectory", solutions)
        own, other = [np.zeros(0, dtype=np.float32)], [np.zeros(0, dtype=np.float32)]
        for s, index in enumerate(indices):
            own.append(np.append(scores[s], np.float32(np.nan))[index])
            same = request.responses[s] == request.proposals[s]
            other.append(np.where(same, own[-1], np.float32(np.nan)))
        return JudgeScores(
            trunk_logit=np.concatenate(own),
            branch_logit=np.concatenate(other),
            num_tokens=num_tokens,
            seconds=time.perf_counter() - start,
        )

    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        """Logit of each step, read at its verdict.

        Raises:
            ModelError: a solution beyond the judge's positions.
        """
        return self._score("solution", solutions)[0]

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        """Largest difference in logit between one pass and a forward over each conversation cut behind a random step.

        Infinite where a logit is no number; 0 where there is nothing to compare.
        """
        solutions, _ = self._solutions(request)
        places = [(s, k) for s, solution in enumerate(solutions) for k in range(len(solution.steps))]
        chosen = np.random.default_rng(seed).choice(len(places), size=min(num_branches, len(places)), replace=False)
        together = self.score_steps(solutions)
        difference = [0.0]
        for s, k in (places[i] for i in chosen):
            cut = StepSolution(question=solutions[s].question, steps=solutions[s].steps[: k + 1])
            difference.append(abs(float(together[s][k]) - float(self.score_steps([cut])[0][-1])))
        return float(np.max(np.nan_to_num(difference, nan=np.inf)))

    def _solutions(self, request: JudgeRequest) -> tuple[list[StepSolution], list[IntArray]]:
        """Responses cut in steps, and each token's step."""
        cut = [step_of_tokens(response, self._policy_tokenizer) for response in request.responses]
        solutions = [
            StepSolution(question=question, steps=steps)
            for question, (steps, _) in zip(request.questions, cut, strict=True)
        ]
        return solutions, [index for _, index in cut]

    @torch.inference_mode()
    def _score(self, what: str, solutions: Sequence[StepSolution]) -> tuple[list[FloatArray], int]:
        """Logits of each solution's steps, and the number of tokens read. [solutions] of [steps]"""
        scores = [np.zeros(0, dtype=np.float32) for _ in solutions]
        some = [s for s, solution in enumerate(solutions) if solution.steps]
        inputs = {s: self._reading.steps(solutions[s]) for s in some}
        for s, (ids, _) in inputs.items():
            self._model.check(f"{what} {s}", ids, num_positions=len(ids))
        for places in batches_within_budget([len(inputs[s][0]) for s in some], self._max_batch_tokens):
            batch = [some[place] for place in places]
            states = self._model.states([inputs[s][0] for s in batch])
            for row, s in enumerate(batch):
                read = states[row, torch.from_numpy(inputs[s][1].astype(np.int64)).to(states.device)]
                scores[s] = (read.float() @ self._difference).cpu().numpy()
        return scores, sum(len(ids) for ids, _ in inputs.values())
