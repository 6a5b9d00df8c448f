"""Examples that share a row are read as if each stood alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcrd_ray.config.data import TinyPrompts
from vcrd_ray.config.models import StudentSection
from vcrd_ray.config.stages import SftSection
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.problems import Example, make_examples, read_problems
from vcrd_ray.models.backend.torch import TorchBackend
from vcrd_ray.models.batching import batch_responses, packed_responses
from vcrd_ray.models.student import Student
from vcrd_ray.training.sft import FineTuner
from vcrd_ray.types import UpdateReport

CPU = torch.device("cpu")


def make_student() -> Student:
    return Student(StudentSection(), lora=None, train_head=True, device=CPU, seed=0)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    problems, _ = read_problems(TinyPrompts(count=11), WorldConfig())
    return make_examples(problems, make_student().tokenizer, max_length=1000)[0]


@pytest.mark.parametrize("row_length", [100, 300, 5000])
def test_states_of_packed_examples_equal_those_of_separate_ones(examples: list[Example], row_length: int) -> None:
    student = make_student().eval()
    prompts, responses = [e.prompt_ids for e in examples], [e.response_ids for e in examples]
    packed = packed_responses(prompts, responses, 0, CPU, row_length=row_length)
    assert packed.ids.shape[0] < len(examples) and packed.ids.shape[1] <= row_length
    with torch.no_grad():
        states = student(packed)
        for example in examples:
            alone = student(batch_responses([example.prompt_ids], [example.response_ids], 0, CPU))
            first = torch.from_numpy(example.response_ids).long()
            targets = packed.ids[packed.token_sequence, packed.token_index + 1]
            starts = [
                i
                for i in range(len(targets) - len(first) + 1)
                if targets[i : i + len(first)].equal(first)
                and torch.allclose(states[i : i + len(first)], alone, rtol=1e-4, atol=1e-4)
            ]
            assert starts, "no place in the rows holds this example's states"


def test_packed_fine_tuning_follows_the_same_losses(examples: list[Example]) -> None:
    losses = []
    for packing in (False, True):
        section = SftSection(
            batch_size=8, micro_batch_size=4, num_updates=3, max_length=200, packing=packing, optim={"lr": 1e-3}
        )
        student = make_student()
        reports: list[UpdateReport] = []
        backend = TorchBackend(student, section.optim, num_updates=3)
        FineTuner(backend=backend, examples=examples, section=section, seed=0, vocab_size=len(student.tokenizer)).run(
            first_update=0, stop=3, on_update=reports.append
        )
        losses.append([r.metrics["loss"] for r in reports])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 9)), min_size=1, max_size=20),
    room=st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_packing_keeps_every_token_once_and_every_row_in_its_length(sizes: list[tuple[int, int]], room: int) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 99, p).astype(np.int32) for p, _ in sizes]
    responses = [rng.integers(1, 99, r).astype(np.int32) for _, r in sizes]
    row_length = max(p + r for p, r in sizes) + room
    packed = packed_responses(prompts, responses, 0, CPU, row_length=row_length)
    assert packed.positions is not None and packed.ids.shape[1] <= row_length
    assert sorted(packed.ids[packed.ids != 0].tolist()) == sorted(np.concatenate([*prompts, *responses]).tolist())
    read = packed.ids[packed.token_sequence, packed.token_index + 1].tolist()
    assert sorted(read) == sorted(np.concatenate(responses).tolist())
    # A sequence begins wherever positions start again.
    begins = int((packed.positions[packed.ids != 0] == 0).sum())
    assert begins == len(sizes)
