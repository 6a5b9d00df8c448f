"""What every engine must do, asked of each: Hugging Face in this process, vLLM in processes of its own."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.hosted import HostedEngine
from tests.conftest import TEACHER
from vcrd_ray.config.data import SamplingSection, TinyPrompts
from vcrd_ray.config.models import TeacherSection, VllmSection
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.problems import read_problems, tokenize_prompts
from vcrd_ray.engines import Engine
from vcrd_ray.engines.loading import load_engine
from vcrd_ray.errors import DataError, ModelError
from vcrd_ray.models.checkpoint_files import load_causal_lm, load_head, load_tokenizer, model_fingerprint, resolve_model
from vcrd_ray.models.wire import from_wire
from vcrd_ray.types import PairBatch, Prompt, Rollout, RolloutPair, TeacherRequest

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
GREEDY = SamplingSection(temperature=0.0, top_p=1.0, max_new_tokens=64)
HOT = SamplingSection(temperature=1.0, top_p=0.9, max_new_tokens=64)
HIDDEN = TeacherRequest(transport="hidden", top_k=4, propose=True, seed=0)
VLLM = TeacherSection(engine="vllm", vllm=VllmSection(enforce_eager=True))


@pytest.fixture(scope="module")
def hosted() -> Iterator[dict[str, HostedEngine]]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make install VLLM=cpu")
    engines = {use: HostedEngine(partial(load_engine, VLLM, TEACHER, use=use)) for use in ("generate", "annotate")}
    try:
        for engine in engines.values():
            engine.wait_ready()
        yield engines
    finally:
        for engine in engines.values():
            engine.stop()


@pytest.fixture(params=["hf", "hf_in_small_batches", "vllm"])
def generator(request: pytest.FixtureRequest) -> Engine:
    if request.param == "vllm":
        engine: Engine = request.getfixturevalue("hosted")["generate"]
        return engine
    section = TeacherSection() if request.param == "hf" else TeacherSection(max_batch_tokens=250)
    return load_engine(section, TEACHER, use="generate")


@pytest.fixture(params=["hf", "vllm"])
def annotator(request: pytest.FixtureRequest) -> Engine:
    if request.param == "vllm":
        engine: Engine = request.getfixturevalue("hosted")["annotate"]
        return engine
    return load_engine(TeacherSection(), TEACHER, use="annotate")


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    problems, _ = read_problems(TinyPrompts(seed=11, count=6), WorldConfig())
    return tokenize_prompts(problems, load_tokenizer(resolve_model(TEACHER)), max_length=512)[0]


def greedy_by_hand(prompt: Prompt, length: int) -> Rollout:
    """One token after the other with the plain model."""
    directory = resolve_model(TEACHER)
    model, eos = load_causal_lm(directory, dtype="float32", device=CPU), load_tokenizer(directory).eos_token_id
    ids, logprobs = list(prompt.ids), []
    with torch.no_grad():
        while len(ids) < len(prompt.ids) + length and (not logprobs or ids[-1] != eos):
            logp = model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            ids.append(int(logp.argmax()))
            logprobs.append(float(logp[ids[-1]]))
    return Rollout(
        prompt_id=prompt.id,
        ids=np.asarray(ids[len(prompt.ids) :], dtype=np.int32),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        finish_reason="stop" if ids[-1] == eos else "length",
    )


def test_the_fingerprint_is_the_models(generator: Engine) -> None:
    assert generator.fingerprint == model_fingerprint(resolve_model(TEACHER))


@pytest.mark.parametrize("length", [64, 5, 1])
def test_greedy_is_the_plain_models_token_for_token(generator: Engine, prompts: list[Prompt], length: int) -> None:
    sampling = SamplingSection(temperature=0.0, top_p=1.0, max_new_tokens=length)
    for prompt, found in zip(prompts[:3], generator.generate(prompts[:3], sampling, seed=0), strict=True):
        wanted = greedy_by_hand(prompt, length)
        assert found.prompt_id == prompt.id and found.ids.tolist() == wanted.ids.tolist()
        assert found.ids.dtype == np.int32 and found.logprobs.dtype == np.float32
        assert found.finish_reason == wanted.finish_reason
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, rtol=1e-4, atol=1e-4)


def test_the_end_token_is_kept_and_nothing_follows_it(generator: Engine, prompts: list[Prompt]) -> None:
    eos = load_tokenizer(resolve_model(TEACHER)).eos_token_id
    stopped = [r for r in generator.generate(prompts, HOT, seed=0) if r.finish_reason == "stop"]
    assert stopped
    for rollout in stopped:
        assert rollout.ids[-1] == eos and eos not in rollout.ids[:-1]


def test_a_response_follows_its_seed_and_prompt_not_its_batch(generator: Engine, prompts: list[Prompt]) -> None:
    together = generator.generate(prompts, HOT, seed=3)
    backwards = generator.generate(prompts[::-1], HOT, seed=3)[::-1]
    alone = [generator.generate([prompt], HOT, seed=3)[0] for prompt in prompts[:2]]
    assert [r.ids.tolist() for r in together] == [r.ids.tolist() for r in backwards]
    assert [r.ids.tolist() for r in together[:2]] == [r.ids.tolist() for r in alone]
    other = generator.generate(prompts, HOT, seed=4)
    assert any(a.ids.tolist() != b.ids.tolist() for a, b in zip(together, other, strict=True))
    # Equal prompts of different problems are sampled apart.
    renamed = generator.generate([replace(prompts[0], id=f"again-{i}") for i in range(8)], HOT, seed=3)
    assert len({tuple(r.ids) for r in renamed}) > 1


def test_logprobs_are_those_of_the_untempered_model(generator: Engine, prompts: list[Prompt]) -> None:
    model = load_causal_lm(resolve_model(TEACHER), dtype="float32", device=CPU)
    (rollout,) = generator.generate(prompts[:1], SamplingSection(temperature=1.5, top_p=0.8, max_new_tokens=20), seed=0)
    ids = torch.from_numpy(np.concatenate([prompts[0].ids, rollout.ids])).long()[None]
    with torch.no_grad():
        logp = model(input_ids=ids).logits[0].float().log_softmax(-1)
    at = torch.arange(len(prompts[0].ids) - 1, ids.shape[1] - 1)
    np.testing.assert_allclose(rollout.logprobs, logp[at, ids[0, at + 1]].numpy(), rtol=1e-4, atol=1e-4)


def test_a_prompt_whose_response_could_be_cut_is_refused(generator: Engine, prompts: list[Prompt]) -> None:
    long = replace(prompts[0], id="long", ids=np.full(470, 30, dtype=np.int32))
    with pytest.raises(DataError, match=r"'long': 470 tokens and max_new_tokens 64 are more than .* 512"):
        generator.generate([prompts[1], long], GREEDY, seed=0)
    assert generator.generate([], GREEDY, seed=0) == []


def test_ids_of_bytes_of_a_character_come_back_as_they_were_drawn(generator: Engine) -> None:
    """No detokenising and tokenising again between: a prompt that ends inside a character is as good as any."""
    tokenizer = load_tokenizer(resolve_model(TEACHER))
    ids = np.asarray(tokenizer.encode("€", add_special_tokens=False)[:1], dtype=np.int32)
    prompt = Prompt(id="half", question="", gold=None, ids=np.concatenate([ids, ids]))
    (found,) = generator.generate([prompt], SamplingSection(temperature=0.0, max_new_tokens=4), seed=0)
    assert found.ids.tolist() == greedy_by_hand(prompt, 4).ids.tolist()


def test_hidden_states_are_the_plain_models(annotator: Engine, pairs: list[RolloutPair]) -> None:
    batch = PairBatch(update=0, micro=0, pairs=tuple(pairs[:3]))
    signals = annotator.annotate(batch, HIDDEN)
    hidden = from_wire(signals.distribution.states, CPU)
    model = load_causal_lm(resolve_model(TEACHER), dtype="float32", device=CPU)
    head = load_head(resolve_model(TEACHER), dtype="float32")
    first = 0
    for response_of in ("teacher_ids", "student_ids"):
        for pair in batch.pairs:
            response = getattr(pair, response_of)
            ids = torch.from_numpy(np.concatenate([pair.prompt_ids, response])).long()[None]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, len(pair.prompt_ids) - 1 : -1]
            rows = hidden[first : first + len(response)]
            torch.testing.assert_close(rows @ head.float().T, logits, rtol=1e-4, atol=1e-4)
            first += len(response)
    assert first == batch.layout.num_tokens == len(hidden) and signals.seconds > 0


def test_a_side_without_responses_is_left_out(annotator: Engine, pairs: list[RolloutPair]) -> None:
    both = annotator.annotate(PairBatch(update=0, micro=0, pairs=tuple(pairs[:2])), HIDDEN)
    for side, rows in (("teacher", slice(0, None)), ("student", slice(-1, None))):
        batch = PairBatch(update=0, micro=0, pairs=tuple(p.only(side) for p in pairs[:2]))  # type: ignore[arg-type]
        alone = from_wire(annotator.annotate(batch, HIDDEN).distribution.states, CPU)
        whole = from_wire(both.distribution.states, CPU)
        cut = PairBatch(update=0, micro=0, pairs=tuple(pairs[:2])).layout.num_teacher_tokens
        wanted = whole[:cut] if side == "teacher" else whole[cut:]
        torch.testing.assert_close(alone[rows], wanted[rows], rtol=1e-4, atol=1e-4)


def test_proposals_and_top_k_are_those_of_the_other_engine(annotator: Engine, pairs: list[RolloutPair]) -> None:
    batch = PairBatch(update=0, micro=0, pairs=tuple(pairs[:4]))
    reference = load_engine(TeacherSection(), TEACHER, use="annotate")
    request = TeacherRequest(transport="top_k", top_k=4, propose=True, seed=0)
    ours, theirs = annotator.annotate(batch, request), reference.annotate(batch, request)
    assert (ours.student_prefix_proposals == theirs.student_prefix_proposals).mean() > 0.99
    assert (ours.distribution.ids[:, 0] == theirs.distribution.ids[:, 0]).mean() > 0.99
    np.testing.assert_allclose(ours.distribution.logp[:, 0], theirs.distribution.logp[:, 0], rtol=1e-3, atol=1e-3)


def test_an_engine_started_for_one_use_says_so_when_asked_for_the_other(
    hosted: dict[str, HostedEngine], prompts: list[Prompt], pairs: list[RolloutPair]
) -> None:
    with pytest.raises(ModelError, match="was started to annotate; start another process to generate"):
        hosted["annotate"].generate(prompts, GREEDY, seed=0)
    with pytest.raises(ModelError, match="was started to generate"):
        hosted["generate"].annotate(PairBatch(update=0, micro=0, pairs=tuple(pairs[:1])), HIDDEN)


def test_greedy_rollouts_of_both_models_are_the_same_in_both_engines(
    hosted: dict[str, HostedEngine], prompts: list[Prompt]
) -> None:
    plain = load_engine(TeacherSection(), TEACHER, use="generate")
    ours, theirs = (engine.generate(prompts, GREEDY, seed=0) for engine in (hosted["generate"], plain))
    assert [r.ids.tolist() for r in ours] == [r.ids.tolist() for r in theirs]


def test_a_model_that_cannot_be_found_is_named_from_the_engines_process(tmp_path: Path) -> None:
    engine = HostedEngine(partial(load_engine, VLLM, str(tmp_path / "nowhere"), use="generate"))
    with pytest.raises(ModelError, match="no such directory"):
        engine.wait_ready()
    engine.stop()
