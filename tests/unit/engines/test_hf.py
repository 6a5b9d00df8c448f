"""The Hugging Face engine: what `Engine` promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import TEACHER
from vcrd_ray.config.data import SamplingSection, TinyPrompts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.problems import read_problems, tokenize_prompts
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.models.wire import from_wire, to_wire
from vcrd_ray.types import PairBatch, Prompt, RolloutPair, TeacherRequest

HIDDEN = TeacherRequest(transport="hidden", top_k=1, propose=True, seed=0)
CPU = torch.device("cpu")
GREEDY = SamplingSection(temperature=0.0, top_p=1.0, max_new_tokens=64)
SAMPLED = SamplingSection(temperature=0.8, top_p=0.95, max_new_tokens=64)


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return HFEngine(TEACHER, dtype="float32", device=CPU)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    problems, _ = read_problems(TinyPrompts(seed=7, count=6), WorldConfig())
    return tokenize_prompts(problems, load_tokenizer(resolve_model(TEACHER)), max_length=1000)[0]


def test_greedy_equals_plain_generate(engine: HFEngine, prompts: list[Prompt]) -> None:
    for prompt, rollout in zip(prompts, engine.generate(prompts, GREEDY, seed=0), strict=True):
        ids = torch.from_numpy(prompt.ids).long()[None]
        settings = {"do_sample": False, "max_new_tokens": 64, "eos_token_id": list(engine.stop_ids), "pad_token_id": 0}
        plain = engine._model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        assert rollout.ids.tolist() == plain[0, ids.shape[1] :].tolist()
        assert rollout.finish_reason == "stop" and rollout.prompt_id == prompt.id


def test_a_sampled_response_does_not_depend_on_its_batch(engine: HFEngine, prompts: list[Prompt]) -> None:
    together = engine.generate(prompts, SAMPLED, seed=3)
    for prompt, rollout in zip(prompts, together, strict=True):
        alone = engine.generate([prompt], SAMPLED, seed=3)[0]
        assert alone.ids.tolist() == rollout.ids.tolist()


def test_seeds_and_prompts_sample_differently(engine: HFEngine, prompts: list[Prompt]) -> None:
    hot = SamplingSection(temperature=1.5, top_p=1.0, max_new_tokens=20)
    one, other = (engine.generate(prompts, hot, seed=s) for s in (0, 1))
    assert all(a.ids.tolist() != b.ids.tolist() for a, b in zip(one, other, strict=True))


def test_logprobs_are_those_of_the_untempered_model(engine: HFEngine, prompts: list[Prompt]) -> None:
    rollout = engine.generate(prompts[:1], SAMPLED, seed=0)[0]
    ids = torch.from_numpy(np.concatenate([prompts[0].ids, rollout.ids])).long()[None]
    with torch.no_grad():
        logp = torch.log_softmax(engine._model(input_ids=ids).logits[0], -1)
    at = torch.arange(len(prompts[0].ids) - 1, ids.shape[1] - 1)
    torch.testing.assert_close(torch.from_numpy(rollout.logprobs), logp[at, ids[0, at + 1]], rtol=1e-4, atol=1e-4)


def test_a_response_cut_by_the_length_limit_says_so(engine: HFEngine, prompts: list[Prompt]) -> None:
    short = SamplingSection(temperature=0.0, top_p=1.0, max_new_tokens=3)
    assert all(len(r.ids) == 3 and r.finish_reason == "length" for r in engine.generate(prompts, short, seed=0))


def test_hidden_states_rebuild_the_logits_of_every_response_token(engine: HFEngine, pairs: list[RolloutPair]) -> None:
    batch = PairBatch(update=0, micro=0, pairs=tuple(pairs[:3]))
    signals = engine.annotate(batch, HIDDEN)
    hidden = from_wire(signals.distribution.states, CPU)
    head = engine._model.get_output_embeddings().weight
    row = 0
    for side in ("teacher_ids", "student_ids"):
        for pair in batch.pairs:
            response = getattr(pair, side)
            ids = torch.from_numpy(np.concatenate([pair.prompt_ids, response])).long()[None]
            with torch.no_grad():
                logits = engine._model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1]
            torch.testing.assert_close(hidden[row : row + len(response)] @ head.T, logits, rtol=1e-4, atol=1e-4)
            row += len(response)
    assert row == batch.layout.num_tokens == len(hidden)


def test_proposals_follow_the_teacher_and_their_key(engine: HFEngine, pairs: list[RolloutPair]) -> None:
    def proposals(update: int, seed: int, chosen: list[RolloutPair]) -> np.ndarray:
        batch = PairBatch(update=update, micro=0, pairs=tuple(chosen))
        return engine.annotate(batch, replace(HIDDEN, seed=seed)).student_prefix_proposals

    both = proposals(0, 0, pairs[:2])
    assert both.tolist() == proposals(0, 0, pairs[:1]).tolist() + proposals(0, 0, pairs[1:2]).tolist()
    # Of the seed and the rollout, not of the update: a fixed rollout is judged once.
    assert both.tolist() == proposals(1, 0, pairs[:2]).tolist() and both.tolist() != proposals(0, 1, pairs[:2]).tolist()
    # The teacher nearly always goes on as the world allows; most proposals before the error are the trajectory's kind.
    assert (both < len(load_tokenizer(resolve_model(TEACHER)))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arrays_on_the_wire_are_bitwise_the_tensors(dtype: torch.dtype) -> None:
    tensor = torch.randn(5, 3).to(dtype)
    array = to_wire(tensor)
    array.setflags(write=False)
    assert from_wire(array, CPU).equal(tensor)
