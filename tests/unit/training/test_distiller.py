"""The update loop in one process: what must be equal bit for bit, and what to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import STUDENT, TEACHER
from vcrd_ray.config import Config
from vcrd_ray.config.models import ValueHeadJudgeSection
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.errors import JudgeError
from vcrd_ray.judges import Judge
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.judges.requests import judged_at
from vcrd_ray.models.backend.torch import torch_backend
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model, token_ids_with
from vcrd_ray.training import assemble
from vcrd_ray.training.data_order import DataOrder
from vcrd_ray.training.judge_checks import JudgeBounds
from vcrd_ray.training.signals import LocalSignals
from vcrd_ray.types import JudgeRequest, JudgeScores, RolloutPair, UpdateReport

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NUM_UPDATES = 4


@pytest.fixture(scope="module")
def teacher() -> HFEngine:
    return HFEngine(TEACHER, dtype="float32", device=CPU)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(ValueHeadJudgeSection(), policy=STUDENT)


class Run:
    """A distillation in this process."""

    def __init__(self, pairs: list[RolloutPair], teacher: HFEngine, judge: Judge, **changes: Any) -> None:
        options: dict[str, Any] = {
            "batch_size": 8,
            "micro_batch_size": 2,
            "num_updates": NUM_UPDATES,
            "optim": {"lr": 1e-3},
            "lora": {"r": 4, "alpha": 16},
        }
        sections: dict[str, Any] = {"teacher": changes.pop("teacher_section", {})}
        sections["student"] = {"path": changes.pop("student_path", STUDENT)}
        config = Config.model_validate(sections | {"distill": options | changes})
        student = assemble.student_to_distil(config, CPU)
        self.batches, self.backend = assemble.make_batches(config, pairs, student, torch_backend)
        self.reports: list[UpdateReport] = []
        self.distiller = assemble.make_distiller(
            config,
            backend=self.backend,
            batches=self.batches,
            signals=LocalSignals(
                teacher=teacher,
                judge=judge,
                request=assemble.make_teacher_request(config),
                only_at=judged_at(config.distill.objective.weighting, student.tokenizer),
            ),
            teacher=assemble.Teacher.of(config, student.tokenizer),
        )

    def updates(self, first: int = 0, stop: int = NUM_UPDATES) -> Run:
        self.distiller.run(first_update=first, stop=stop, on_update=self.reports.append)
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.backend.student.named_parameters() if p.requires_grad}


def assert_same(left: Run, right: Run, **tolerance: float) -> None:
    ours, theirs = left.weights(), right.weights()
    assert ours.keys() == theirs.keys()
    for name in ours:
        if tolerance:
            torch.testing.assert_close(ours[name], theirs[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")
        else:
            assert ours[name].equal(theirs[name]), name
    for a, b in zip(left.reports, right.reports, strict=True):
        if tolerance:
            assert a.metrics["loss"] == pytest.approx(b.metrics["loss"], rel=1e-4)
        else:
            assert a.metrics["loss"] == b.metrics["loss"] and a.decisions == b.decisions


def test_overlapped_and_serial_runs_are_bitwise_equal(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    # Dropout on: the schedule must not change the order in which random numbers are drawn.
    lora = {"r": 4, "alpha": 16, "dropout": 0.1}
    overlapped = Run(pairs, teacher, judge, lora=lora, overlap=True).updates()
    serial = Run(pairs, teacher, judge, lora=lora, overlap=False).updates()
    assert_same(overlapped, serial)
    assert overlapped.reports[0].metrics["judge/judged_rows"] > 0


def test_micro_batch_size_changes_nothing_but_rounding(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    lora = {"r": 4, "alpha": 16, "dropout": 0.0}
    many = Run(pairs, teacher, judge, lora=lora, micro_batch_size=2).updates()
    one = Run(pairs, teacher, judge, lora=lora, micro_batch_size=8).updates()
    assert_same(many, one, rtol=1e-3, atol=1e-5)


def test_resume_from_a_checkpoint_is_bitwise_equal(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge, tmp_path: Path
) -> None:
    whole = Run(pairs, teacher, judge).updates()
    first = Run(pairs, teacher, judge).updates(stop=2)
    first.backend.save(tmp_path)
    second = Run(pairs, teacher, judge)
    second.backend.load(tmp_path)
    second.updates(first=2)
    second.reports = first.reports + second.reports
    assert_same(whole, second)


@pytest.mark.parametrize("full", [{"lora": None}, {"lora": None, "train_head": True}])
def test_full_fine_tuning_learns(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge, full: dict[str, Any]
) -> None:
    run = Run(pairs, teacher, judge, **full).updates()
    assert run.reports[-1].metrics["loss"] < run.reports[0].metrics["loss"]
    head = run.backend.student._head_parameter()
    assert head.requires_grad == bool(full.get("train_head"))


def test_uniform_weights_equal_the_unweighted_loss_written_out(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    """w = 1, lambda = 1, alpha = 0.1, detached: the released DistiLLM-2, here from dense logits."""
    run = Run(
        pairs, teacher, judge, objective={"weighting": {"type": "uniform"}}, lora={"r": 4, "alpha": 16, "dropout": 0}
    )
    student = run.backend.student
    vocab = len(student.tokenizer)
    batch = [
        pairs[i]
        for i in DataOrder(num_examples=len(pairs), batch_size=8, micro_batch_size=2, ranks=1, seed=0).order_of(0)
    ]
    losses = []
    with torch.no_grad():
        for pair in batch:
            terms = []
            for response, reverse in ((pair.teacher_ids, False), (pair.student_ids, True)):
                ids = torch.from_numpy(np.concatenate([pair.prompt_ids, response])).long()[None]
                at = slice(len(pair.prompt_ids) - 1, ids.shape[1] - 1)
                q = torch.log_softmax(student.model(input_ids=ids).logits[0, at, :vocab].double(), -1)
                p = torch.log_softmax(teacher._model(input_ids=ids).logits[0, at, :vocab].double(), -1)
                if reverse:
                    mixture = torch.log(0.9 * p.exp() + 0.1 * q.exp())
                    terms.append((q.exp() * (q - mixture)).sum(-1).mean())
                else:
                    mixture = torch.log(0.1 * p.exp() + 0.9 * q.exp())
                    terms.append((p.exp() * (p - mixture)).sum(-1).mean())
            losses.append(sum(terms))
    run.updates(stop=1)
    assert run.reports[0].metrics["loss"] == pytest.approx(float(sum(losses)) / len(losses), rel=1e-5)


def test_teacher_distilled_into_itself_has_no_loss(pairs: list[RolloutPair], teacher: HFEngine, judge: Judge) -> None:
    run = Run(pairs, teacher, judge, student_path=TEACHER, lora={"dropout": 0.0}).updates(stop=1)
    assert abs(run.reports[0].metrics["loss"]) < 1e-6


def test_prm_free_weights_stay_in_their_bounds_and_ask_no_judge(pairs: list[RolloutPair], teacher: HFEngine) -> None:
    run = Run(pairs, teacher, None, objective={"weighting": {"type": "teacher_prob"}}).updates(stop=1)  # type: ignore[arg-type]
    metrics = run.reports[0].metrics
    assert metrics["judge/judged_rows"] == 0 and 0.5 <= metrics["weights/mean"] <= 2 and metrics["weights/mean"] != 1


def test_composite_judges_step_ends_and_asks_the_teacher_elsewhere(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    def first_update(weighting: dict[str, Any], judge: Judge = judge) -> dict[str, float]:
        run = Run(pairs, teacher, judge, objective={"weighting": weighting}, decisions_per_update=10_000)
        return run.updates(stop=1).reports[0].metrics

    asked: list[int] = []

    class Counting:
        profile, self_check = judge.profile, judge.self_check

        def score(self, request: JudgeRequest) -> JudgeScores:
            differs = np.concatenate(request.proposals) != np.concatenate(request.responses)
            asked.append(int(differs.sum()))
            newlines = token_ids_with(load_tokenizer(resolve_model(STUDENT)), "\n")
            assert np.isin(np.concatenate(request.responses)[differs], list(newlines)).all()
            return judge.score(request)

    composite = first_update({"type": "composite"}, Counting())  # type: ignore[arg-type]
    ratio, teacher_prob = first_update({"type": "ratio"}), first_update({"type": "teacher_prob"})
    assert 0 < composite["judge/judged_rows"] <= sum(asked) < ratio["judge/judged_rows"] / 4
    assert len({m["loss"] for m in (composite, ratio, teacher_prob)}) == 3


def test_a_judge_of_whole_steps_weighs_student_prefixes_by_the_student_score(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    class StepJudge:
        """No score for what the trajectory does not say."""

        profile, self_check = judge.profile, judge.self_check

        def score(self, request: JudgeRequest) -> JudgeScores:
            scores = judge.score(request)
            differs = np.concatenate(request.proposals) != np.concatenate(request.responses)
            return replace(scores, branch_logit=np.where(differs, np.nan, scores.trunk_logit).astype(np.float32))

    objective = {"weighting": {"type": "student_score"}, "lambda_teacher": 0.0}
    runs = [Run(pairs, teacher, j, objective=objective).updates(stop=2) for j in (judge, StepJudge())]  # type: ignore[list-item]
    assert all(runs[0].weights()[name].equal(weight) for name, weight in runs[1].weights().items())
    assert runs[1].reports[0].metrics["judge/invalid_rows"] == 0 < runs[1].reports[0].metrics["judge/judged_rows"]


class BrokenJudge:
    """Answers NaN for a share of the rows."""

    fingerprint = "broken"

    def __init__(self, inner: Judge, share: float) -> None:
        self._inner, self._share = inner, share

    def score(self, request: JudgeRequest) -> JudgeScores:
        scores = self._inner.score(request)
        logit = scores.branch_logit.copy()
        logit[: int(self._share * len(logit))] = np.nan
        return JudgeScores(
            trunk_logit=scores.trunk_logit, branch_logit=logit, num_tokens=scores.num_tokens, seconds=scores.seconds
        )

    def self_check(self, request: JudgeRequest, *, num_branches: int, seed: int) -> float:
        return 0.0 if self._share < 1 else float("inf")


def test_nan_from_the_judge_weighs_one_is_counted_and_stops_the_run_beyond_the_bound(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    run = Run(pairs, teacher, BrokenJudge(judge, 0.5))
    with pytest.raises(
        JudgeError, match=r"scores are NaN, infinite or missing, more than judge\.max_invalid_share 0\.01"
    ):
        run.updates()
    tolerant = Run(pairs, teacher, BrokenJudge(judge, 0.5))
    tolerant.distiller._bounds = JudgeBounds(max_invalid_share=1.0, self_check_tolerance=None)
    tolerant.updates(stop=1)
    assert tolerant.reports[0].metrics["judge/invalid_rows"] > 0
    assert np.isfinite(tolerant.reports[0].metrics["loss"])


class SilentJudge(BrokenJudge):
    """Answers one of three requests with `answer` of its rightful scores."""

    def __init__(self, inner: Judge, answer: Callable[[JudgeScores], JudgeScores]) -> None:
        super().__init__(inner, 0.0)
        self._answer, self._count = answer, 0

    def score(self, request: JudgeRequest) -> JudgeScores:
        scores = self._inner.score(request)
        self._count += 1
        return self._answer(scores) if self._count % 3 == 1 else scores


def test_scores_of_a_wrong_number_weigh_one_and_count_as_invalid(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    answers: list[Callable[[JudgeScores], JudgeScores]] = [
        lambda s: replace(s, trunk_logit=s.trunk_logit[:-1]),
        lambda s: replace(s, branch_logit=s.branch_logit[:1]),
        lambda s: replace(s, trunk_logit=s.trunk_logit[:, None], branch_logit=s.branch_logit[:, None]),
    ]
    nan = Run(pairs, teacher, SilentJudge(judge, lambda s: replace(s, trunk_logit=s.trunk_logit * np.nan)))
    nan.distiller._bounds = JudgeBounds(max_invalid_share=1.0, self_check_tolerance=None)
    wanted = nan.updates(stop=1).reports[0].metrics
    assert wanted["judge/invalid_rows"] > 0
    for answer in answers:
        with pytest.raises(JudgeError, match="infinite or missing"):
            Run(pairs, teacher, SilentJudge(judge, answer)).updates()
        run = Run(pairs, teacher, SilentJudge(judge, answer))
        run.distiller._bounds = JudgeBounds(max_invalid_share=1.0, self_check_tolerance=None)
        metrics = run.updates(stop=1).reports[0].metrics
        for name in ("judge/invalid_rows", "judge/judged_rows", "loss"):
            assert metrics[name] == wanted[name]


def test_quarantined_tokens_weigh_one_and_are_counted_apart_from_invalid_ones(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    def nothing(scores: JudgeScores) -> JudgeScores:
        return JudgeScores.nothing(len(scores.trunk_logit), quarantined=True)

    whole = Run(pairs, teacher, judge).updates(stop=1).reports[0].metrics
    metrics = Run(pairs, teacher, SilentJudge(judge, nothing)).updates(stop=1).reports[0].metrics
    assert metrics["judge/set_aside_rows"] > 0 and metrics["judge/invalid_rows"] == 0
    assert metrics["judge/judged_rows"] + metrics["judge/set_aside_rows"] == whole["judge/judged_rows"]
    missing = Run(pairs, teacher, SilentJudge(judge, lambda s: replace(nothing(s), quarantined=False)))
    missing.distiller._bounds = JudgeBounds(max_invalid_share=1.0, self_check_tolerance=None)
    assert missing.updates(stop=1).reports[0].metrics["loss"] == metrics["loss"]


def test_a_judge_that_fails_its_self_check_stops_the_run_before_it_trains(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge
) -> None:
    run = Run(pairs, teacher, BrokenJudge(judge, 1.0))
    with pytest.raises(JudgeError, match="packed and separate judging differ by inf"):
        run.updates()
    assert run.reports == []


def test_exported_student_is_the_trained_one(
    pairs: list[RolloutPair], teacher: HFEngine, judge: Judge, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = Run(pairs, teacher, judge).updates()
    run.backend.export(tmp_path)
    student = run.backend.student.eval()
    ids = torch.from_numpy(pairs[0].prompt_ids).long()[None]
    with torch.no_grad():
        wanted = student.model(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)(input_ids=ids).logits
        base = AutoModelForCausalLM.from_pretrained(resolve_model(STUDENT), dtype=torch.float32)
        untrained = base(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")(input_ids=ids).logits
    torch.testing.assert_close(merged, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(adapted, wanted, rtol=1e-5, atol=1e-5)
    assert (untrained - wanted).abs().max() > 1e-2
