"""What is no number stops a run at once: the update, the role and the last good checkpoint are named, nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import STUDENT, TEACHER, make_pairs
from vcrd_ray.config import Config
from vcrd_ray.config.data import SamplingSection
from vcrd_ray.config.methods import with_method
from vcrd_ray.config.models import LoraSection, StudentSection
from vcrd_ray.engines import Engine
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.errors import NotFiniteError
from vcrd_ray.method.sampling import sample_rows
from vcrd_ray.models.finite import check_signals, first_not_finite, is_finite
from vcrd_ray.models.student import Student
from vcrd_ray.training.in_process import distil, fine_tune
from vcrd_ray.types import (
    PairBatch,
    Prompt,
    Rollout,
    RolloutPair,
    TeacherLogits,
    TeacherSignals,
    TeacherStates,
    TeacherTopK,
)

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def pairs() -> list[RolloutPair]:
    return make_pairs(8)


@pytest.mark.parametrize("row", [[NAN, 0.0, 0.0], [0.0, NAN, -1.0], [INF, 0.0, 0.0], [-INF, -INF, -INF]])
def test_a_row_that_is_no_distribution_gives_no_token(row: list[float]) -> None:
    logp = torch.tensor([[-1.0, -1.0, -1.0], row])
    drawn = sample_rows(logp, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert drawn.tolist() == [1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_tensor_with_one_bad_element_is_not_finite(dtype: torch.dtype, value: float) -> None:
    tensor = torch.ones(3, 5, dtype=dtype)
    assert is_finite(tensor) and is_finite(torch.zeros(0)) and is_finite(torch.arange(3))
    tensor[1, 2] = value
    assert not is_finite(tensor)
    assert first_not_finite([("good", torch.ones(2)), ("bad", tensor)]) == "bad"


def signals(batch: PairBatch, kind: str, value: float, token: int) -> TeacherSignals:
    shape = (batch.layout.num_tokens, 4)
    values = np.zeros(shape, dtype=np.float32)
    values[token, 1] = value
    distribution: Any = {
        "hidden": lambda: TeacherStates(states=values),
        "bfloat16": lambda: TeacherStates(states=torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()),
        "logits": lambda: TeacherLogits(logits=values),
        "top_k": lambda: TeacherTopK(ids=np.zeros(shape, dtype=np.int32), logp=values),
    }[kind]()
    return TeacherSignals(distribution=distribution, student_prefix_proposals=np.zeros(0, dtype=np.int32), seconds=0)


@pytest.mark.parametrize("kind", ["hidden", "bfloat16", "logits", "top_k"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_a_teacher_that_says_no_number_is_named_with_the_pair(
    pairs: list[RolloutPair], kind: str, value: float
) -> None:
    batch = PairBatch(update=7, micro=0, pairs=tuple(pairs[:3]))
    check_signals(batch, signals(batch, kind, 1.0, 0))
    token = len(pairs[0].teacher_ids) + 2
    with pytest.raises(
        NotFiniteError, match=rf"update 7: the teacher's .*pair '{pairs[1].id}', token 2 of the teacher's"
    ):
        check_signals(batch, signals(batch, kind, value, token))


def test_a_token_may_be_impossible_and_a_state_may_not(pairs: list[RolloutPair]) -> None:
    batch = PairBatch(update=0, micro=0, pairs=tuple(pairs[:2]))
    check_signals(batch, signals(batch, "top_k", -INF, 0))
    check_signals(batch, signals(batch, "logits", -INF, 0))
    with pytest.raises(NotFiniteError):
        check_signals(batch, signals(batch, "hidden", -INF, 0))


def test_a_response_with_a_log_probability_that_is_none_is_refused() -> None:
    with pytest.raises(NotFiniteError, match="prompt 'p'"):
        Rollout(
            prompt_id="p",
            ids=np.ones(2, dtype=np.int32),
            logprobs=np.array([-1.0, NAN], dtype=np.float32),
            finish_reason="stop",
        )


def spoil(name: str, value: float) -> Callable[[torch.nn.Module], None]:
    def change(model: torch.nn.Module) -> None:
        with torch.no_grad():
            dict(model.named_parameters())[name].flatten()[0] = value

    return change


@pytest.fixture
def bad_engine() -> HFEngine:
    engine = HFEngine(TEACHER, dtype="float32", device=CPU)
    spoil("model.norm.weight", NAN)(engine._model)
    return engine


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8}, {"temperature": 1, "top_p": 0.9}])
def test_nothing_is_sampled_from_logits_that_are_no_numbers(
    pairs: list[RolloutPair], bad_engine: HFEngine, sampling: dict[str, float]
) -> None:
    prompts = [Prompt(id=p.id, question=p.question, gold=None, ids=p.prompt_ids) for p in pairs[:2]]
    with pytest.raises(NotFiniteError, match=f"token 0 of prompt '{prompts[0].id}'") as caught:
        bad_engine.generate(prompts, SamplingSection.model_validate({"max_new_tokens": 4} | sampling), seed=0)
    assert "\n" not in str(caught.value)


def config(method: str = "vcrd", **sections: Any) -> Config:
    options = {"batch_size": 4, "micro_batch_size": 2, "num_updates": 3, "optim": {"lr": 1e-3}, "lora": {"r": 2}}
    return with_method(Config.model_validate({"distill": options} | sections), method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vcrd", "vcrd_prob", "uniform", "gkd", "distillm2", "taid", "abkd", "akl"])
def test_a_student_that_is_no_number_stops_the_run_whatever_the_method(pairs: list[RolloutPair], method: str) -> None:
    wanted = config(method)
    student = Student(wanted.student, lora=wanted.distill.lora, train_head=False, device=CPU, seed=0)
    spoil("base_model.model.model.norm.weight", NAN)(student.model)
    with pytest.raises(NotFiniteError, match=r"update 0: the student's .*; the last good checkpoint is none") as caught:
        distil(wanted, pairs, student=student)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["hidden", "logits", "top_k"])
@pytest.mark.parametrize("method", ["vcrd", "uniform"])
def test_a_teacher_that_is_no_number_stops_the_run(
    pairs: list[RolloutPair], bad_engine: HFEngine, transport: str, method: str
) -> None:
    if transport == "top_k" and method == "vcrd":
        pytest.skip("the objective needs the whole distribution")
    with pytest.raises(NotFiniteError, match=r"update 0: the teacher's .* pair 'tiny"):
        distil(config(method, teacher={"transport": transport}), pairs, teacher=bad_engine)


class Late(Engine):
    """A teacher that is one until an update."""

    def __init__(self, good: Engine, update: int, harm: Callable[[TeacherSignals], TeacherSignals]) -> None:
        self._good, self._update, self._harm = good, update, harm
        self.fingerprint = good.fingerprint

    def generate(self, *args: Any, **kwargs: Any) -> list[Rollout]:
        return self._good.generate(*args, **kwargs)

    def annotate(self, batch: PairBatch, request: Any) -> TeacherSignals:
        found = self._good.annotate(batch, request)
        return self._harm(found) if batch.update == self._update else found

    def logprobs(self, *args: Any) -> Any:
        raise NotImplementedError


@pytest.mark.slow
@pytest.mark.parametrize("factor", [NAN, INF, 1e38])
def test_the_update_at_which_a_teacher_fails_is_named(pairs: list[RolloutPair], factor: float) -> None:
    def harm(found: TeacherSignals) -> TeacherSignals:
        assert isinstance(found.distribution, TeacherStates)
        states = found.distribution.states.astype(np.float32)
        return replace(found, distribution=TeacherStates(states=(states + 1) * np.float32(factor)))

    teacher = Late(HFEngine(TEACHER, dtype="float32", device=CPU), 1, harm)
    with pytest.raises(NotFiniteError, match="update 1: the teacher's"):
        distil(config("uniform"), pairs, teacher=teacher)


@pytest.mark.slow
def test_fine_tuning_stops_at_its_first_loss_that_is_no_number() -> None:
    # The first updates are fine, and what they make of the weights is not.
    sections = {"sft": {"prompts": {"type": "tiny", "count": 16}, "batch_size": 4, "micro_batch_size": 2}}
    sections["sft"] |= {"num_updates": 8, "optim": {"lr": 1e30, "warmup_ratio": 0.5}}
    with pytest.raises(NotFiniteError, match=r"update [1-7]: the student's"):
        fine_tune(Config.model_validate(sections))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["layers.0.self_attn.q_proj.lora_B.default.weight", "norm.weight"])
def test_no_weight_that_is_no_number_is_written(tmp_path: Path, name: str, value: float) -> None:
    student = Student(StudentSection(path=STUDENT), lora=LoraSection(r=2), train_head=False, device=CPU, seed=0)
    spoil(f"base_model.model.model.{name}", value)(student.model)
    (tmp_path / "version").mkdir()
    with pytest.raises(NotFiniteError, match=r"model\.(layers\.0\.self_attn\.q_proj|norm)\.weight holds NaN"):
        student.export(tmp_path / "run")
    with pytest.raises(NotFiniteError):
        student.write_version(tmp_path / "version", merged=True)
    if "lora" in name:
        with pytest.raises(NotFiniteError, match="lora_B"):
            student.write_version(tmp_path / "version", merged=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["version"]
