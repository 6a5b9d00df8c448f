"""The tiny world's own rules as a judge: right tokens score high, wrong ones low. Runs no model."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from vcrd_ray.errors import DataError
from vcrd_ray.judges import Judge, JudgeProfile
from vcrd_ray.judges.packed_trees import branch_positions
from vcrd_ray.tiny.oracle import branch_validity, token_validity
from vcrd_ray.tiny.world import Problem, parse_question
from vcrd_ray.types import FloatArray, IntArray, JudgeRequest, JudgeScores, StepSolution


class OracleJudge(Judge):
    """Knows of every token whether it is valid, and says so with a fixed confidence."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, confidence: float) -> None:
        """Take the tiny world's tokenizer and the score of a valid token (of others: 1 minus it).

        Special tokens are judged where the trajectory has them, but get no branch, as with any judge.
        """
        if not 0.5 < confidence < 1.0:
            raise ValueError(f"confidence={confidence} must lie between 0.5 and 1, both excluded")
        self.profile = JudgeProfile(
            fingerprint=f"tiny-oracle-{confidence}",
            family="oracle",
            scores="token",
            reads="at the token itself",
            trained_on="every token: it knows the rules",
        )
        self._tokenizer = tokenizer
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self._logit = math.log(confidence / (1.0 - confidence))

    def score(self, request: JudgeRequest) -> JudgeScores:
        """Logit +-logit(confidence) of every trajectory token and of every proposal.

        Raises:
            DataError: a question that is not of the tiny world.
        """
        start = time.perf_counter()
        trunk_valid: list[bool] = []
        branch_valid: list[bool] = []
        num_branches = 0
        for s, question in enumerate(request.questions):
            problem = _problem(s, question)
            response, proposal = request.responses[s], request.proposals[s]
            ids = response.tolist()
            trunk = token_validity(problem, ids, self._tokenizer)
            alternative = list(trunk)
            for t in np.flatnonzero(branch_positions(response, proposal, self._special_ids)):
                alternative[t] = branch_validity(problem, ids, int(t), int(proposal[t]), self._tokenizer)
                num_branches += 1
            trunk_valid += trunk
            branch_valid += alternative
        return JudgeScores(
            trunk_logit=self._logits(trunk_valid),
            branch_logit=self._logits(branch_valid),
            num_tokens=len(trunk_valid) + num_branches,
            seconds=time.perf_counter() - start,
        )

    def score_steps(self, solutions: Sequence[StepSolution]) -> list[FloatArray]:
        """A step is valid where all its tokens are."""
        scores = []
        for solution in solutions:
            problem = _problem(0, solution.question)
            # The answer's line is the last: no newline follows it.
            lines = [f"{step}\n" for step in solution.steps[:-1]] + list(solution.steps[-1:])
            ids = [self._tokenizer.encode(line, add_special_tokens=False) for line in lines]
            valid = token_validity(problem, [i for step in ids for i in step], self._tokenizer)
            stops = np.cumsum([len(step) for step in ids])
            starts = stops - [len(step) for step in ids]
            scores.append(self._logits([all(valid[a:b]) for a, b in zip(starts, stops, strict=True)]))
        return scores

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        """Largest difference in logit to reading (prefix, proposal) as a response of its own."""
        whole = self.score(request).branch_logit
        branches: list[tuple[int, str, IntArray]] = []
        first_row = 0
        for question, response, proposal in zip(request.questions, request.responses, request.proposals, strict=True):
            for t in np.flatnonzero(branch_positions(response, proposal, self._special_ids)):
                branch = np.append(response[:t], proposal[t])
                branches.append((first_row + int(t), question, branch))
            first_row += len(response)
        difference = 0.0
        for index in np.random.default_rng(seed).permutation(len(branches))[:num_branches]:
            row, question, branch = branches[index]
            alone = self.score(JudgeRequest(questions=(question,), responses=(branch,), proposals=(branch,)))
            difference = max(difference, abs(float(alone.trunk_logit[-1] - whole[row])))
        return difference

    def _logits(self, valid: list[bool]) -> FloatArray:
        return np.where(np.asarray(valid, dtype=np.bool_), self._logit, -self._logit).astype(np.float32)


def _problem(trajectory: int, question: str) -> Problem:
    try:
        return parse_question(question)
    except ValueError as error:
        raise DataError(
            f"judge request, trajectory {trajectory}: the oracle knows the tiny world only: {error}"
        ) from None
