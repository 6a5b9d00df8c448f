"""Claims about the shipped models. Bounds stand well below the measured figures of the folder's README."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from jobs.tiny_world.reward import RewardModel
from jobs.tiny_world.training import greedy_accuracy, load
from jobs.tiny_world.verdicts import judge_proposals
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny import CHECKPOINTS
from vcrd_ray.tiny.tokenizer import build_tokenizer
from vcrd_ray.tiny.world import TEST_SEED, Problem, make_problems

pytestmark = pytest.mark.slow

NAMES = ("teacher", "teacher-weak", "student-base", "prm")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(CHECKPOINTS / "teacher")


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return make_problems(WorldConfig(), seed=TEST_SEED, count=100)


def test_the_teacher_is_nearly_always_right_and_the_weak_teacher_often_wrong(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem]
) -> None:
    assert greedy_accuracy(load(CHECKPOINTS / "teacher"), tokenizer, problems) >= 0.9
    assert 0.6 <= greedy_accuracy(load(CHECKPOINTS / "teacher-weak"), tokenizer, problems) <= 0.93


def test_the_student_base_answers_no_chat_prompt(tokenizer: PreTrainedTokenizerFast, problems: list[Problem]) -> None:
    assert greedy_accuracy(load(CHECKPOINTS / "student-base"), tokenizer, problems) <= 0.1


def test_the_reward_model_tells_valid_from_invalid_proposals(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem]
) -> None:
    judge = RewardModel.load(CHECKPOINTS / "prm")
    proposer = load(CHECKPOINTS / "teacher-weak")
    verdicts = judge_proposals(judge, proposer, tokenizer, problems[:20], seed=0)
    assert verdicts.auc(at_step_end=False) >= 0.95
    assert verdicts.auc(at_step_end=True) >= 0.97


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_has_the_tokenizer_that_is_built(name: str) -> None:
    shipped = AutoTokenizer.from_pretrained(CHECKPOINTS / name)
    built = build_tokenizer()
    # transformers loads a Qwen2 folder's tokenizer as its own class, which cuts text by a rule of its own: what counts
    # is that ids and vocabulary are the same.
    texts = [p.question for p in make_problems(WorldConfig(), seed=2, count=50)]
    assert shipped.get_vocab() == built.get_vocab()
    assert [shipped.encode(t) for t in texts] == [built.encode(t) for t in texts]
    assert shipped.chat_template == built.chat_template


@pytest.mark.parametrize("name", NAMES)
def test_every_folder_is_a_plain_qwen2_checkpoint_in_bfloat16(name: str) -> None:
    config = json.loads((CHECKPOINTS / name / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert config["hidden_size"] // config["num_attention_heads"] == 32
    state = load_file(CHECKPOINTS / name / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_the_reward_model_has_the_keys_of_skywork() -> None:
    state = load_file(CHECKPOINTS / "prm" / "model.safetensors")
    backbone = load_file(CHECKPOINTS / "teacher" / "model.safetensors")
    assert state["v_head.summary.weight"].shape == (1, 128)
    assert state["v_head.summary.bias"].shape == (1,)
    assert set(state) - set(backbone) == {"v_head.summary.weight", "v_head.summary.bias"}


def test_a_reward_model_scores_the_same_once_saved_and_loaded(tmp_path: Path) -> None:
    judge = RewardModel.load(CHECKPOINTS / "prm")
    judge.save(tmp_path, build_tokenizer())
    ids = torch.arange(3, 30)[None]
    assert torch.equal(RewardModel.load(tmp_path)(ids), judge(ids))


def test_the_shipped_models_stay_small() -> None:
    files = [file for file in CHECKPOINTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12 * 2**20


def test_the_teacher_loads_through_the_auto_classes() -> None:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / "teacher")
    assert model.generation_config.eos_token_id == build_tokenizer().eos_token_id
