"""The tiny world's rules, asked through the protocol of a judge."""

import math

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from vcrd_ray.errors import DataError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.oracle import OracleJudge
from vcrd_ray.tiny.tokenizer import build_tokenizer
from vcrd_ray.types import JudgeRequest, StepSolution

QUESTION = "Ann has 12 pens, gets 7. Bob has 20 pens, loses 5. How many in all?"
VALID = math.log(0.95 / 0.05)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def judge(tokenizer: PreTrainedTokenizerFast) -> OracleJudge:
    return OracleJudge(tokenizer, confidence=0.95)


def request(
    tokenizer: PreTrainedTokenizerFast, text: str, changes: dict[int, str], *, eos: bool = False
) -> JudgeRequest:
    """One trajectory; `changes` are other proposals, by position."""
    ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.eos_token_id] * eos
    response = np.asarray(ids, dtype=np.int32)
    proposals = response.copy()
    for position, piece in changes.items():
        (proposals[position],) = tokenizer.encode(piece, add_special_tokens=False)
    return JudgeRequest(questions=(QUESTION,), responses=(response,), proposals=(proposals,))


def test_right_and_wrong_tokens_score_by_confidence(judge: OracleJudge, tokenizer: PreTrainedTokenizerFast) -> None:
    # One token a character: 1 2 + 7 = 1 8 (wrong: 19).
    scores = judge.score(request(tokenizer, "12+7=18", {6: "9"}))
    assert scores.trunk_logit.tolist() == pytest.approx([VALID] * 6 + [-VALID])
    assert scores.branch_logit.tolist() == pytest.approx([VALID] * 7)


def test_several_proposals_can_be_right(judge: OracleJudge, tokenizer: PreTrainedTokenizerFast) -> None:
    # Begin with the other operand (7+12) or the other person (20-5); no step begins with 9.
    starts = [request(tokenizer, "12+7=19", {0: digit}) for digit in ("7", "2", "9")]
    logits = [float(judge.score(start).branch_logit[0]) for start in starts]
    assert logits == pytest.approx([VALID, VALID, -VALID])


def test_confidence_sets_the_score(tokenizer: PreTrainedTokenizerFast) -> None:
    judge = OracleJudge(tokenizer, confidence=0.8)
    scores = judge.score(request(tokenizer, "12+7=18", {}))
    probabilities = 1 / (1 + np.exp(-scores.trunk_logit))
    assert probabilities.tolist() == pytest.approx([0.8] * 6 + [0.2])


def test_without_a_branch_the_score_is_a_copy(judge: OracleJudge, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = request(tokenizer, "12+7=19", {3: "<eos>"})
    scores = judge.score(asked)
    # An early end would be wrong, but special tokens are not compared.
    assert scores.branch_logit.tobytes() == scores.trunk_logit.tobytes()
    assert scores.num_tokens == 7


def test_rows_of_several_trajectories_stand_one_after_the_other(
    judge: OracleJudge, tokenizer: PreTrainedTokenizerFast
) -> None:
    first = request(tokenizer, "12+7=18", {6: "9"})
    second = request(tokenizer, "20-5=15", {0: "9"})
    both = JudgeRequest(
        questions=first.questions + second.questions,
        responses=first.responses + second.responses,
        proposals=first.proposals + second.proposals,
    )
    together, apart = judge.score(both), [judge.score(first), judge.score(second)]
    assert together.trunk_logit.tolist() == [*apart[0].trunk_logit, *apart[1].trunk_logit]
    assert together.branch_logit.tolist() == [
        *apart[0].branch_logit,
        *apart[1].branch_logit,
    ]
    assert together.num_tokens == 16


def test_self_check_finds_branches_equal_to_responses_of_their_own(
    judge: OracleJudge, tokenizer: PreTrainedTokenizerFast
) -> None:
    as_judge: Judge = judge
    asked = request(tokenizer, "12+7=18\n20-5=15\n", {0: "7", 3: "1", 6: "9", 8: "9"})
    scores = judge.score(asked)
    assert len(set(scores.branch_logit[[0, 3, 6, 8]].tolist())) == 2
    assert as_judge.self_check(asked, num_branches=4, seed=0) == 0.0


def test_a_step_is_valid_where_all_its_tokens_are(judge: OracleJudge) -> None:
    right = StepSolution(question=QUESTION, steps=("12+7=19", "20-5=15", "19+15=34", "#### 34"))
    wrong = StepSolution(question=QUESTION, steps=("12+7=18", "20-5=15"))
    found = judge.score_steps([right, wrong])
    assert found[0].tolist() == pytest.approx([VALID] * 4)
    assert found[1].tolist() == pytest.approx([-VALID, VALID])


def test_a_question_of_another_world_is_named(judge: OracleJudge) -> None:
    ids = np.asarray([5], dtype=np.int32)
    foreign = JudgeRequest(questions=("What is love?",), responses=(ids,), proposals=(ids,))
    with pytest.raises(DataError, match=r"trajectory 0: the oracle knows the tiny world only.*love"):
        judge.score(foreign)


@pytest.mark.parametrize("confidence", [0.5, 1.0, 0.2])
def test_a_confidence_that_says_nothing_or_everything_is_refused(
    tokenizer: PreTrainedTokenizerFast, confidence: float
) -> None:
    with pytest.raises(ValueError, match=f"confidence={confidence} must lie between"):
        OracleJudge(tokenizer, confidence=confidence)
