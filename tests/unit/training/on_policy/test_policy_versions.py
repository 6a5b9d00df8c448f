"""A version of the student from trainer to writer, and every way in which another one could answer."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import STUDENT
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.config.stages import OptimSection
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.errors import SyncError
from vcrd_ray.models.backend.torch import TorchBackend
from vcrd_ray.models.batching import response_batch
from vcrd_ray.models.student import Student
from vcrd_ray.training.on_policy.policy_versions import read_version
from vcrd_ray.training.on_policy.publisher import Publisher
from vcrd_ray.training.on_policy.requests import PolicyVersion, ResponseRequest
from vcrd_ray.training.on_policy.writer import ResponseWriter, WriterSettings
from vcrd_ray.types import FloatArray, IntArray, PairBatch, RolloutPair

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SETTINGS = WriterSettings(
    sampling=SamplingSection(max_new_tokens=24),
    watched=SamplingSection(temperature=0.0, max_new_tokens=24),
    seed=0,
    max_length=200,
    batch_size=4,
    canary_tolerance=1e-3,
    sync_timeout_s=60,
)


class Trainer:
    """A student that takes steps on a made-up loss, and publishes."""

    def __init__(self, folder: Path, pairs: list[RolloutPair], *, lora: bool = True, merged: bool = False) -> None:
        section = LoraSection(r=4, alpha=16) if lora else None
        student = Student(StudentSection(path=STUDENT), lora=section, train_head=not lora, device=CPU, seed=0)
        self.backend = TorchBackend(student, OptimSection(lr=1e-2, warmup_ratio=0.0), num_updates=100)
        self.pairs = pairs
        self.publisher = Publisher(backend=self.backend, run_dir=folder, pairs=pairs, merged=merged)

    def step(self) -> None:
        batch = response_batch(self.pairs[:4], 0, CPU)
        self.backend.backward(self.backend.forward(batch, logits=True).log_softmax(-1)[:, 7].mean().neg())
        self.backend.step()

    def publish(self, number: int, *, learnt: bool = True) -> PolicyVersion:
        self.publisher.note(learnt=learnt)
        return self.publisher.publish(number)


def engine() -> HFEngine:
    return HFEngine(STUDENT, dtype="float32", device=CPU)


def order_of(version: PolicyVersion, pairs: list[RolloutPair]) -> ResponseRequest:
    batch = PairBatch(update=9, micro=0, pairs=tuple(pairs[:3]))
    return ResponseRequest(version=version, batches=(batch,), renewed=((True, False, True),))


@pytest.mark.parametrize(("lora", "merged"), [(True, False), (True, True), (False, False)])
def test_the_writer_answers_with_each_new_version(
    tmp_path: Path, pairs: list[RolloutPair], lora: bool, merged: bool
) -> None:
    trainer, writer = Trainer(tmp_path, pairs, lora=lora, merged=merged), ResponseWriter(engine(), SETTINGS)
    logprobs = []
    for number in (1, 2):
        trainer.step()
        version = trainer.publish(number)
        (batch,), written = writer.write(order_of(version, pairs))
        assert written.version == number and written.sync_s > 0 and written.canary_difference < 1e-4
        assert [p.student_version for p in batch.pairs] == [number, 0, number]
        assert batch.pairs[1] is pairs[1]
        # What is written is what the trainer's own student gives, token for token.
        pair, rollout = batch.pairs[0], written.rollouts[0]
        trainer.backend.student.eval()
        with torch.no_grad():
            logits = trainer.backend.forward(response_batch([pair.only("student")], 0, CPU), logits=True)
        vocab = len(trainer.backend.student.tokenizer)
        wanted = logits[:, :vocab].log_softmax(-1).gather(1, torch.from_numpy(pair.student_ids).long()[:, None])[:, 0]
        trainer.backend.student.train()
        np.testing.assert_allclose(rollout.logprobs, wanted.numpy(), atol=1e-4)
        logprobs.append(read_version(version.directory).canary.logprobs)
    assert logprobs[0] != logprobs[1]
    # Once more with the same version: nothing is loaded.
    assert writer.write(order_of(version, pairs))[1].sync_s == 0


def test_responses_depend_on_seed_version_update_and_pair_alone(tmp_path: Path, pairs: list[RolloutPair]) -> None:
    trainer = Trainer(tmp_path, pairs)
    trainer.step()
    version = trainer.publish(1)
    together = ResponseWriter(engine(), SETTINGS).write(order_of(version, pairs))[1].rollouts
    again = ResponseWriter(engine(), SETTINGS).write(order_of(version, pairs))[1].rollouts
    assert [r.ids.tolist() for r in together] == [r.ids.tolist() for r in again]
    batch = PairBatch(update=10, micro=0, pairs=tuple(pairs[:3]))
    other = ResponseRequest(version=version, batches=(batch,), renewed=((True, False, True),))
    later = ResponseWriter(engine(), SETTINGS).write(other)[1].rollouts
    assert any(a.ids.tolist() != b.ids.tolist() for a, b in zip(together, later, strict=True))


def test_responses_are_cut_where_prompt_and_response_reach_the_longest(
    tmp_path: Path, pairs: list[RolloutPair]
) -> None:
    trainer = Trainer(tmp_path, pairs)
    trainer.step()
    longest = max(len(p.prompt_ids) for p in pairs[:3]) + 2
    settings = WriterSettings(
        sampling=SamplingSection(max_new_tokens=24),
        watched=SamplingSection(temperature=0.0, max_new_tokens=24),
        seed=0,
        max_length=longest,
        batch_size=1,
        canary_tolerance=1e-3,
        sync_timeout_s=60,
    )
    (batch,), written = ResponseWriter(engine(), settings).write(order_of(trainer.publish(1), pairs))
    assert all(len(p.prompt_ids) + len(p.student_ids) <= longest for p in (batch.pairs[0], batch.pairs[2]))
    assert {r.finish_reason for r in written.rollouts} == {"length"}


class BaseAnswers(HFEngine):
    """A sync that says it worked and leaves the base in place."""

    def load_version(self, directory: Path, kind: object) -> None:
        pass


class FirstAnswers(HFEngine):
    """A sync that works once: later versions are taken for the first."""

    loaded = False

    def load_version(self, directory: Path, kind: object) -> None:
        if not self.loaded:
            super().load_version(directory, kind)  # type: ignore[arg-type]
        self.loaded = True


class Hangs(HFEngine):
    """A sync that never ends."""

    def load_version(self, directory: Path, kind: object) -> None:
        time.sleep(3600)


class TooFew(HFEngine):
    """An engine that answers about fewer tokens than it was asked about."""

    def logprobs(self, prompt: IntArray, response: IntArray) -> FloatArray:
        return super().logprobs(prompt, response)[:-1]


def test_a_sync_that_leaves_the_base_in_place_is_named(tmp_path: Path, pairs: list[RolloutPair]) -> None:
    trainer = Trainer(tmp_path, pairs)
    trainer.step()
    writer = ResponseWriter(BaseAnswers(STUDENT, dtype="float32", device=CPU), SETTINGS)
    with pytest.raises(SyncError, match=r"version 1 of the student was sent, but the student before training answers"):
        writer.write(order_of(trainer.publish(1), pairs))


def test_a_sync_that_leaves_an_earlier_version_in_place_is_refused(tmp_path: Path, pairs: list[RolloutPair]) -> None:
    trainer, writer = (
        Trainer(tmp_path, pairs),
        ResponseWriter(FirstAnswers(STUDENT, dtype="float32", device=CPU), SETTINGS),
    )
    trainer.step()
    writer.write(order_of(trainer.publish(1), pairs))
    trainer.step()
    second = order_of(trainer.publish(2), pairs)
    for _ in range(2):  # it does not serve the version it had either
        with pytest.raises(SyncError, match=r"differ from the trainer's by .* more than 0\.001"):
            writer.write(second)


def test_a_hanging_sync_ends_in_words(tmp_path: Path, pairs: list[RolloutPair]) -> None:
    trainer = Trainer(tmp_path, pairs)
    trainer.step()
    from dataclasses import replace

    writer = ResponseWriter(Hangs(STUDENT, dtype="float32", device=CPU), replace(SETTINGS, sync_timeout_s=0.3))
    with pytest.raises(SyncError, match=r"version 1 of the student was not loaded .* within 0\.3 s"):
        writer.write(order_of(trainer.publish(1), pairs))


def test_an_answer_of_the_wrong_length_is_refused(tmp_path: Path, pairs: list[RolloutPair]) -> None:
    trainer = Trainer(tmp_path, pairs)
    trainer.step()
    with pytest.raises(SyncError, match=r"log-probabilities of a canary of"):
        ResponseWriter(TooFew(STUDENT, dtype="float32", device=CPU), SETTINGS).write(
            order_of(trainer.publish(1), pairs)
        )


def test_a_version_that_changed_on_its_way_is_refused(tmp_path: Path, pairs: list[RolloutPair]) -> None:
    trainer = Trainer(tmp_path, pairs)
    trainer.step()
    version = trainer.publish(1)
    file = version.directory / "adapter_model.safetensors"
    state = load_file(file)
    name = sorted(state)[0]
    state[name] = state[name] + 1e-6
    save_file(state, file)
    with pytest.raises(SyncError, match=r"version 1 of the student is not what was sent: "):
        ResponseWriter(engine(), SETTINGS).write(order_of(version, pairs))


def test_another_runs_version_under_the_same_number_is_refused(tmp_path: Path, pairs: list[RolloutPair]) -> None:
    trainer = Trainer(tmp_path, pairs)
    trainer.step()
    announced = trainer.publish(1)
    other = Trainer(tmp_path, pairs)
    other.step()
    other.step()
    other.publish(1)
    with pytest.raises(SyncError, match=r"is it written by another run"):
        ResponseWriter(engine(), SETTINGS).write(order_of(announced, pairs))


def test_a_version_that_is_not_there_says_where_it_should_be(tmp_path: Path, pairs: list[RolloutPair]) -> None:
    missing = PolicyVersion(number=3, directory=tmp_path / "student_versions" / "000003", digest="0" * 16)
    with pytest.raises(SyncError, match=r"000003: no version of the student there; is the run directory on storage"):
        ResponseWriter(engine(), SETTINGS).write(order_of(missing, pairs))


def test_weights_that_do_not_change_although_something_was_learnt_are_refused(
    tmp_path: Path, pairs: list[RolloutPair]
) -> None:
    trainer = Trainer(tmp_path, pairs)
    trainer.step()
    trainer.publish(1)
    # The first update of a warm-up has no learning rate: nothing changed, and nothing is wrong.
    trainer.publish(2, learnt=False)
    with pytest.raises(SyncError, match=r"version 3 of the student is that of version 2, bit for bit"):
        trainer.publish(3, learnt=True)
