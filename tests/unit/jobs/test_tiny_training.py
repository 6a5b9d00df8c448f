"""Claims about the loops that make the tiny models, on models of one layer."""

import itertools
import json
import random
import subprocess
import sys

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from jobs.tiny_world.reward import NO_LABEL, RewardModel, labelled, pack, reward_loss
from jobs.tiny_world.reward_training import Corruption
from jobs.tiny_world.training import (
    Example,
    ModelShape,
    TrainingPlan,
    chat_examples,
    generate,
    is_right,
    language_model_loss,
    raw_examples,
    train_language_model,
)
from jobs.tiny_world.verdicts import Verdicts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.tiny.tokenizer import build_tokenizer
from vcrd_ray.tiny.world import make_problems, parse_question

SHAPE = ModelShape(num_layers=1, num_heads=1, num_kv_heads=1, intermediate=32)
CONFIG = WorldConfig()
PROBLEM = parse_question("Ann has 12 pens, gets 7. How many now?")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def trained(tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    model = SHAPE.build(tokenizer, seed=1)
    plan = TrainingPlan(num_updates=3, batch_size=4, learning_rate=1e-3, warmup=1)
    stream = chat_examples(CONFIG, tokenizer, seed=0)
    train_language_model(model, stream, plan, pad_id=tokenizer.pad_token_id)
    return model.model.embed_tokens.weight


def test_training_is_a_function_of_its_seeds(tokenizer: PreTrainedTokenizerFast) -> None:
    assert torch.equal(trained(tokenizer), trained(tokenizer))


def test_training_lowers_the_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    model = SHAPE.build(tokenizer, seed=1)
    held_out = list(itertools.islice(chat_examples(CONFIG, tokenizer, seed=7), 16))
    before = language_model_loss(model, held_out, pad_id=tokenizer.pad_token_id)
    plan = TrainingPlan(num_updates=20, batch_size=8, learning_rate=1e-2, warmup=1)
    stream = chat_examples(CONFIG, tokenizer, seed=0)
    train_language_model(model, stream, plan, pad_id=tokenizer.pad_token_id)
    assert language_model_loss(model, held_out, pad_id=tokenizer.pad_token_id) < before - 1


def test_padding_changes_no_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    model = SHAPE.build(tokenizer, seed=1)
    short, long = [Example(ids=list(range(5, 5 + n)), num_context=4) for n in (9, 14)]
    alone = [language_model_loss(model, [e], pad_id=0).item() for e in (short, long)]
    together = language_model_loss(model, [short, long], pad_id=0).item()
    assert together == pytest.approx((5 * alone[0] + 10 * alone[1]) / 15, abs=1e-5)


def test_raw_text_has_no_chat_format(tokenizer: PreTrainedTokenizerFast) -> None:
    for example in itertools.islice(raw_examples(CONFIG, tokenizer, seed=0), 50):
        assert not set(example.ids) & set(tokenizer.all_special_ids)


def test_a_response_ends_at_its_first_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    model = SHAPE.build(tokenizer, seed=1)
    problems = make_problems(CONFIG, seed=7, count=3)
    for response in generate(model, tokenizer, problems, temperature=1.0):
        assert tokenizer.eos_token_id not in response[:-1]
        assert tokenizer.pad_token_id not in response or tokenizer.eos_token_id not in response


def test_only_the_last_line_decides_whether_a_response_is_right(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    verdicts = {
        text: is_right(PROBLEM, tokenizer.encode(text), tokenizer)
        for text in ("12+7=18\n#### 19", "12+7=19\n#### 18", "12+7=19", "#### 19\n12+7=19", "")
    }
    assert [text for text, right in verdicts.items() if right] == ["12+7=18\n#### 19"]


def test_eos_and_special_branches_are_not_judged(tokenizer: PreTrainedTokenizerFast) -> None:
    response = [*tokenizer.encode("12+7=18\n#### 18"), tokenizer.eos_token_id]
    (nine,) = tokenizer.encode("9")
    branches = [nine] * 7 + [tokenizer.eos_token_id] * 6
    record = labelled(PROBLEM, response, branches, tokenizer)
    assert record.context[0] == tokenizer.bos_token_id
    assert record.response == response[:-1]
    assert record.labels == [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1]
    assert record.branch_labels == [0, 0, 0, 0, 0, 0, 1] + [NO_LABEL] * 5


def test_a_packed_branch_scores_as_if_it_stood_in_the_response(tokenizer: PreTrainedTokenizerFast) -> None:
    judge = RewardModel(SHAPE.build(tokenizer, seed=1)).eval()
    records = []
    for text in ("12+7=18\n#### 18", "7+12 is"):
        response = tokenizer.encode(text)
        branches = [token + 1 for token in response]
        records.append(labelled(PROBLEM, response, branches, tokenizer))
    packed = pack(records, pad_id=0)
    logits = judge(packed.ids, positions=packed.positions, allowed=packed.allowed)
    for row, record in enumerate(records):
        for position, branch in enumerate(record.branches):
            alone = judge(torch.tensor([[*record.context, *record.response[:position], branch]]))[0, -1]
            column = packed.ids.shape[1] - len(records[0].branches) + position
            assert torch.allclose(logits[row, column], alone, atol=1e-5)


def test_padding_changes_no_reward_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    judge = RewardModel(SHAPE.build(tokenizer, seed=1)).eval()
    records = [
        labelled(PROBLEM, response, response, tokenizer)
        for response in (tokenizer.encode("12+7"), tokenizer.encode("12+7=18\n#### 18"))
    ]
    alone = [reward_loss(judge, [record], pad_id=0).item() for record in records]
    together = reward_loss(judge, records, pad_id=0).item()
    assert together == pytest.approx((4 * alone[0] + 12 * alone[1]) / 16, abs=1e-5)


def test_corruptions_are_nearly_always_invalid(tokenizer: PreTrainedTokenizerFast) -> None:
    rng = random.Random(0)
    corruption = Corruption(CONFIG, tokenizer)
    response = tokenizer.encode("12+7=19\n#### 19")
    labels = [
        label
        for _ in range(50)
        for label in labelled(
            PROBLEM, response, [corruption.draw(token, rng) for token in response], tokenizer
        ).branch_labels
    ]
    assert 0.7 < labels.count(0) / len(labels) < 1.0


def test_auc_counts_right_pairs_and_halves_ties() -> None:
    verdicts = Verdicts(
        scores=torch.tensor([0.9, 0.5, 0.5, 0.1, 0.0]),
        valid=torch.tensor([True, True, False, False, True]),
        at_step_end=torch.tensor([False, False, False, False, True]),
    )
    assert verdicts.auc(at_step_end=False) == pytest.approx((2 + 1.5) / 4)


def test_help_of_the_job_answers_without_torch() -> None:
    code = (
        "import sys, json; sys.argv = ['tiny_world', '--help']\n"
        "import jobs.tiny_world.__main__ as job\n"
        "try:\n    job.main()\n"
        "except SystemExit as stop:\n"
        "    print(json.dumps([stop.code, 'torch' in sys.modules]))\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--out" in shown.stdout
    assert json.loads(shown.stdout.splitlines()[-1]) == [0, False]
