"""The two-label judge: where its separators stand, what it reads, its files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2ForCausalLM

from tests.unit.judges.checkpoints import (
    BLANK_LINE,
    EOS,
    SEPARATOR,
    WEIGHTS,
    byte_tokenizer,
    edit_weights,
    two_label_tensors,
    write_checkpoint,
)
from vcrd_ray.errors import ModelError
from vcrd_ray.judges.packed import PackedJudge
from vcrd_ray.judges.qwen_prm import load_qwen_prm_judge
from vcrd_ray.types import JudgeRequest, StepSolution

SYSTEM = "Be kind."


def load(path: Path, **changes: Any) -> PackedJudge:
    how: dict[str, Any] = {
        "dtype": "float32",
        "device": "cpu",
        "separator": "<extra_0>",
        "system": SYSTEM,
        "policy_tokenizer": byte_tokenizer(),
        "max_batch_tokens": 4096,
        "attention": "auto",
    }
    return load_qwen_prm_judge(path, **(how | changes))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("judge"), two_label_tensors)


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> PackedJudge:
    return load(checkpoint)


def good_logit(checkpoint: Path, ids: list[int]) -> float:
    """ln(softmax of the good label / of the bad one) at the last token, by the published formula."""
    state = load_file(checkpoint / WEIGHTS)
    with torch.no_grad():
        hidden = Qwen2ForCausalLM.from_pretrained(checkpoint, dtype="float32").model(torch.tensor([ids]))
        inner = torch.relu(hidden.last_hidden_state[0, -1] @ state["score.0.weight"].T + state["score.0.bias"])
        bad, good = (inner @ state["score.2.weight"].T + state["score.2.bias"]).softmax(-1).double()
    return float(good.log() - bad.log())


def prompt(question: str) -> list[int]:
    text = f"<bos>system\n{SYSTEM}<eos>\n<bos>user\n{question}<eos>\n<bos>assistant\n"
    return list(byte_tokenizer().encode(text))


def test_both_proposals_are_read_at_a_separator_behind_them(checkpoint: Path, judge: PackedJudge) -> None:
    """A blank line ends a step: the trunk carries a separator there, and y_t is read at it."""
    response, proposal = [50, BLANK_LINE, 60, 61], [51, 70, 60, BLANK_LINE]
    request = JudgeRequest(
        questions=("1+1?",),
        responses=(np.array(response, dtype=np.int32),),
        proposals=(np.array(proposal, dtype=np.int32),),
    )
    scores, start = judge.score(request), prompt("1+1?")
    prefixes = [start, [*start, 50], [*start, 50, BLANK_LINE, SEPARATOR], [*start, 50, BLANK_LINE, SEPARATOR, 60]]
    for t, prefix in enumerate(prefixes):
        for logits, token in ((scores.trunk_logit, response[t]), (scores.branch_logit, proposal[t])):
            assert logits[t] == pytest.approx(good_logit(checkpoint, [*prefix, token, SEPARATOR]), abs=1e-4)
    # Trunk with one separator, a separator behind three of four own tokens, two tokens for each of three proposals.
    assert scores.num_tokens == len(start) + 4 + 1 + 3 + 2 * 3


def test_steps_are_read_at_the_separator_behind_each(checkpoint: Path, judge: PackedJudge) -> None:
    solutions = [
        StepSolution(question="1+1?", steps=("One and one.", "So 2")),
        StepSolution(question="x", steps=("y",)),
    ]
    for solution, scores in zip(solutions, judge.score_steps(solutions), strict=True):
        ids = prompt(solution.question)
        for step, score in zip(solution.steps, scores, strict=True):
            ids += [*byte_tokenizer().encode(step), SEPARATOR]
            assert score == pytest.approx(good_logit(checkpoint, ids), abs=1e-4)


def test_a_special_token_of_the_trajectory_is_not_given_a_separator(judge: PackedJudge) -> None:
    response = np.array([50, EOS], dtype=np.int32)
    scores = judge.score(JudgeRequest(questions=("x",), responses=(response,), proposals=(response,)))
    assert scores.num_tokens == len(prompt("x")) + 2 + 1


def test_profile_says_where_it_reads(judge: PackedJudge) -> None:
    assert judge.profile.family == "qwen_prm" and judge.profile.scores == "token"
    assert "separator" in judge.profile.reads and "separator" in judge.profile.trained_on


@pytest.mark.parametrize("name", ["score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias"])
def test_missing_or_misshapen_head_is_named(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, two_label_tensors)
    edit_weights(tmp_path, lambda state: state.update({name: torch.zeros(3, 3)}))
    with pytest.raises(ModelError, match=rf"'{name}' has shape \[3, 3\], expected .*Qwen2\.5-Math-PRM"):
        load(tmp_path)
    edit_weights(tmp_path, lambda state: state.pop(name))
    with pytest.raises(ModelError, match=rf"no tensor '{name}'.*Qwen2\.5-Math-PRM"):
        load(tmp_path)


def test_tokenizer_without_separator_or_chat_template_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a", two_label_tensors, tokenizer=byte_tokenizer(separator=False))
    with pytest.raises(ModelError, match=r"no token '<extra_0>'; set judge\.separator"):
        load(tmp_path / "a")
    write_checkpoint(tmp_path / "b", two_label_tensors, tokenizer=byte_tokenizer(chat=False))
    with pytest.raises(ModelError, match="no chat template"):
        load(tmp_path / "b")


def test_a_head_of_the_other_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tensor 'score\.0\.weight'"):
        load(write_checkpoint(tmp_path))


def test_the_fingerprint_is_of_all_that_scores_depend_on(checkpoint: Path, judge: PackedJudge, tmp_path: Path) -> None:
    other_policy = byte_tokenizer()
    other_policy.add_special_tokens({"additional_special_tokens": ["<more>"]})
    judges = [
        judge,
        load(checkpoint, system="Be strict."),
        load(checkpoint, separator="<eos>"),
        load(checkpoint, dtype="bfloat16"),
        load(checkpoint, policy_tokenizer=other_policy),
        load(write_checkpoint(tmp_path, two_label_tensors, seed=1)),
    ]
    assert len({j.profile.fingerprint for j in judges}) == len(judges)
    assert load(checkpoint, max_batch_tokens=7).profile.fingerprint == judge.profile.fingerprint


def test_a_branch_behind_the_last_position_is_refused(judge: PackedJudge) -> None:
    fitting = np.full(192 - len(prompt("x")) - 1, 50, dtype=np.int32)
    judge.score(JudgeRequest(questions=("x",), responses=(fitting,), proposals=(fitting,)))
    whole = np.append(fitting, np.int32(50))
    with pytest.raises(ModelError, match=r"193 tokens .* 192 positions"):
        judge.score(JudgeRequest(questions=("x",), responses=(whole,), proposals=(whole,)))


def test_tensors_of_nothing_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, two_label_tensors)
    edit_weights(tmp_path, lambda state: state.update({"model.layers.0.self_attn.q_proj.lora_A": torch.zeros(2, 2)}))
    with pytest.raises(ModelError, match=r"1 tensors belong to no part .*lora_A.*merge"):
        load(tmp_path)
