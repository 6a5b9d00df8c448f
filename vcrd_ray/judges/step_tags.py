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

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import ModelError
from vcrd_ray.judges import Judge, JudgeProfile
from vcrd_ray.judges.checkpoint import judge_fingerprint
from vcrd_ray.judges.language_model import LanguageModel, load_language_model
from vcrd_ray.models.checkpoint_files import load_tokenizer, tokenizer_fingerprint
from vcrd_ray.models.packing import batches_within_budget
from vcrd_ray.types import FloatArray, IntArray, JudgeRequest, JudgeScores, StepSolution

Template = Literal["math_shepherd", "rlhflow"]

_PROBE = StepSolution(question="What is 1 + 1?", steps=("1 + 1 = 2", "The answer is 2."))
_NUMBERED = re.compile(r"Step \d+:")


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
    tokenizer = load_tokenizer(directory)
    reading: VerdictReading
    if template == "math_shepherd":
        reading = MathShepherdReading(tokenizer, good=good, bad=bad, step_tag=step_tag)
        reads, identity = "at the tag behind a step", (good, bad, step_tag)
    else:
        reading = RlhflowReading(tokenizer, good=good, bad=bad)
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
            vocabulary="own",
            reads=reads,
            trained_on="the verdict behind a step",
        ),
        max_batch_tokens=max_batch_tokens,
    )


def step_of_tokens(ids: IntArray, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[str, ...], IntArray]:
    """Cut a response in steps at line breaks: their texts without surrounding space, and each token's step.

    A token belongs to the step of its first character: the newline that ends a step is part of it, and so is a token that
    goes on behind it. Empty lines, and an end-of-sequence token behind the last line, belong to the step before them (at the
    beginning, to the first one). Special tokens have no text.

    Returns:
        Steps [K], and an index into them for each token [T]; -1 throughout where no line has text.
    """
    text = str(tokenizer.decode(ids.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    lines = [line.strip() for line in text.split("\n")]
    # A newline is a byte of its own in UTF-8, so it shows even where tokens decoded alone are no whole characters.
    unique, inverse = np.unique(ids, return_inverse=True)
    pieces = tokenizer.batch_decode([[int(i)] for i in unique], skip_special_tokens=True)
    newlines = np.asarray([piece.count("\n") for piece in pieces], dtype=np.int64)[inverse]
    if newlines.sum() != len(lines) - 1:
        raise ModelError(
            f"policy tokenizer: a response decodes to {len(lines) - 1} line breaks, its tokens one by one to"
            f" {int(newlines.sum())}; judges of whole steps cannot tell which token belongs to which step"
        )
    line = np.cumsum(newlines) - newlines
    step = np.cumsum([bool(text) for text in lines]) - 1
    steps = tuple(filter(None, lines))
    return steps, np.maximum(step, 0 if steps else -1)[line].astype(np.int32)


class VerdictReading(Protocol):
    """A template: which tokens are verdicts, and where they are predicted. Knows tokenizers only."""

    verdicts: tuple[int, int]
    """Ids of good and bad."""

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """Input ids, and the index at which each step's verdict is predicted; at least one step. [n] and [steps]"""


class MathShepherdReading(VerdictReading):
    """One text with a tag behind each step; the verdict stands in the place of the tag's successor."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, good: str, bad: str, step_tag: str) -> None:
        """Take the judge's tokenizer.

        Raises:
            ModelError: the verdicts are not one known token each, or the tag is unknown.
        """
        self._tokenizer = tokenizer
        self._tag_text = step_tag
        verdicts = tokenizer.encode(f"{good} {bad}", add_special_tokens=False)
        if len(verdicts) != 2:
            raise ModelError(
                f"judge {tokenizer.name_or_path}:"
                f" its tokenizer writes {f'{good} {bad}'!r} in {len(verdicts)} tokens, not one a verdict; set"
                " judge.good and judge.bad to its verdicts"
            )
        self.verdicts = _check_verdicts(tokenizer, verdicts[0], verdicts[1], good=good, bad=bad)
        tag = tokenizer.encode(step_tag, add_special_tokens=False)
        if not tag or tag[-1] == tokenizer.unk_token_id:
            raise ModelError(
                f"judge {tokenizer.name_or_path}:"
                f" its tokenizer does not know the tag {step_tag!r}; set judge.step_tag to its own"
            )
        self._tag = int(tag[-1])

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """Read at the tags.

        Raises:
            ModelError: a tag is no token of its own in the text.
        """
        upto = []
        text = f"{solution.question} "
        for number, step in enumerate(solution.steps, start=1):
            numbered = step if _NUMBERED.match(step) else f"Step {number}: {step}"
            text += f"{numbered} {self._tag_text}"
            upto.append(text)
            text += "\n"
        ids = self._tokenizer.encode(upto[-1])
        tags = [place for place, i in enumerate(ids) if i == self._tag]
        if len(tags) > len(upto):
            # Question or steps hold the tag themselves.
            tags = [n - 1 for n in _prefix_lengths(self._tokenizer.encode, upto[-1], ids, upto) or ()]
        if len(tags) != len(upto) or any(ids[place] != self._tag for place in tags):
            raise ModelError(
                f"judge {self._tokenizer.name_or_path}, template math_shepherd:"
                f" its tokenizer does not write the tag {self._tag_text!r} as one token"
                " behind each step; set judge.step_tag to the tag it was trained with"
            )
        return np.asarray(ids, dtype=np.int32), np.asarray(tags, dtype=np.int32)


class RlhflowReading(VerdictReading):
    """A chat in which the user gives steps and the assistant verdicts; read at what precedes a verdict."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, good: str, bad: str) -> None:
        """Take the judge's tokenizer.

        Raises:
            ModelError: it has no chat template, or does not know the verdicts.
        """
        if tokenizer.chat_template is None:
            raise ModelError(
                f"judge {tokenizer.name_or_path}, template rlhflow:"
                f" its tokenizer has no chat template, in which its input is written"
            )
        self._tokenizer = tokenizer
        self._good_text = good
        ids = [(self._encode(text) or [-1])[-1] for text in (good, bad)]
        self.verdicts = _check_verdicts(tokenizer, ids[0], ids[1], good=good, bad=bad)

    def steps(self, solution: StepSolution) -> tuple[IntArray, IntArray]:
        """Read at the last token of the prompt for each verdict.

        Raises:
            ModelError: the chat template does not write a conversation as the beginning of a longer one.
        """
        messages: list[dict[str, str]] = []
        upto = []
        for number, step in enumerate(solution.steps):
            messages.append({"role": "user", "content": step if number else f"{solution.question} {step}"})
            upto.append(self._template(messages, add_generation_prompt=True))
            messages.append({"role": "assistant", "content": self._good_text})
        whole = self._template(messages, add_generation_prompt=False)
        ids = self._encode(whole)
        lengths = _prefix_lengths(self._encode, whole, ids, upto)
        if lengths is None or any(n >= len(ids) or ids[n] != self.verdicts[0] for n in lengths):
            raise ModelError(
                f"judge {self._tokenizer.name_or_path}, template rlhflow: its chat template does not put the verdict"
                f" {self._good_text!r} directly behind the prompt for it, so there is no place to read it; use the"
                " tokenizer files published with the judge"
            )
        # What follows the last place is never looked at.
        return np.asarray(ids[: lengths[-1]], dtype=np.int32), np.asarray(lengths, dtype=np.int32) - 1

    def _template(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids


class StepTagsJudge(Judge):
    """A language model, and a template that says where its verdicts are read."""

    def __init__(
        self,
        *,
        model: LanguageModel,
        reading: VerdictReading,
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


def _check_verdicts(
    tokenizer: PreTrainedTokenizerBase, good_id: int, bad_id: int, *, good: str, bad: str
) -> tuple[int, int]:
    unknown = [text for text, i in ((good, good_id), (bad, bad_id)) if i < 0 or i == tokenizer.unk_token_id]
    if unknown:
        raise ModelError(
            f"judge {tokenizer.name_or_path}:"
            f" its tokenizer does not know the verdict {unknown[0]!r}; set judge.good and judge.bad to its verdicts"
        )
    if good_id == bad_id:
        raise ModelError(
            f"judge {tokenizer.name_or_path}:"
            f" the verdicts {good!r} and {bad!r} are the same token {good_id}; set judge.good and judge.bad to"
            " different ones"
        )
    return int(good_id), int(bad_id)


def _prefix_lengths(
    encode: Callable[[str], list[int]], whole: str, ids: Sequence[int], prefixes: Sequence[str]
) -> list[int] | None:
    """How many ids each prefix of a text has; None where the ids of a prefix are not the first ids of the whole."""
    if any(not whole.startswith(prefix) for prefix in prefixes):
        return None
    # Once over the text where tokens end at the cuts; else prefix by prefix.
    pieces = [encode(whole[a:b]) for a, b in pairwise([0, *map(len, prefixes), len(whole)])]
    if [i for piece in pieces for i in piece] == list(ids):
        ends: npt.NDArray[np.int64] = np.cumsum([len(piece) for piece in pieces[:-1]])
        return [int(end) for end in ends]
    parts = [encode(prefix) for prefix in prefixes]
    if any(part != list(ids[: len(part)]) for part in parts):
        return None
    return [len(part) for part in parts]
