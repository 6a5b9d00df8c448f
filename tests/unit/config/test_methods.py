"""Every named method trains, asks only what it needs, and is what its authors published."""

from __future__ import annotations

import math

import pytest
import torch

from tests.unit.training.test_distiller import NUM_UPDATES, Run
from vcrd_ray.config import Config
from vcrd_ray.config.methods import METHODS, with_method
from vcrd_ray.config.models import OracleJudgeSection
from vcrd_ray.config.objective import SkewedKL
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.errors import ConfigError
from vcrd_ray.judges.loading import load_judge
from vcrd_ray.types import RolloutPair

pytestmark = pytest.mark.slow

MIXED = {"validation_pairs": 8, "start": 0.5, "every": 2}


@pytest.fixture(scope="module")
def teacher() -> HFEngine:
    return HFEngine("tiny:teacher", dtype="float32", device=torch.device("cpu"))


def objective(name: str) -> dict[str, object]:
    section = with_method(Config(), name).distill.objective.model_dump()
    if section["mixing"] is not None:
        section["mixing"] = section["mixing"] | MIXED  # room for it in a few pairs
    return section


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name: str, pairs: list[RolloutPair], teacher: HFEngine) -> None:
    section = with_method(Config(), name).distill.objective
    judge = load_judge(OracleJudgeSection(), policy="tiny:student-base") if section.needs_judge else None
    run = Run(pairs, teacher if section.needs_teacher else None, judge, objective=objective(name))  # type: ignore[arg-type]
    before = run.weights()
    run.updates()
    after = run.weights()
    assert any(not before[n].equal(after[n]) for n in before)
    for report in run.reports:
        metrics = report.metrics
        assert math.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
        for side, strength in (("teacher", section.lambda_teacher), ("student", section.lambda_student)):
            assert (f"divergence/{side}_prefix" not in metrics) == (strength == 0) or section.mixing is not None
        assert bool(metrics["judge/judged_rows"]) == section.needs_judge


def test_ablations_keep_the_run_s_lambdas_and_baselines_have_their_own() -> None:
    config = Config.model_validate({"distill": {"objective": {"lambda_teacher": 2, "lambda_student": 1.5}}})

    def strengths(name: str) -> tuple[float, float]:
        chosen = with_method(config, name).distill.objective
        return chosen.lambda_teacher, chosen.lambda_student

    assert strengths("vcrd") == strengths("amp_off") == strengths("uniform") == strengths("vcrd_prob") == (2, 1.5)
    assert strengths("lv_skl") == strengths("skl") == (2, 0) and strengths("lv_srkl") == strengths("srkl") == (0, 1.5)
    assert strengths("distillm2") == (1, 1) and strengths("kd") == (1, 0) and strengths("gkd") == (0.5, 0.5)


def test_settings_of_a_part_survive_where_the_method_takes_the_part_as_it_comes() -> None:
    parts = {"on_teacher": {"type": "skewed_kl", "alpha": 0.3}, "weighting": {"type": "ratio", "w_max": 5}}
    config = Config.model_validate({"distill": {"objective": parts}})
    assert with_method(config, "vcrd").distill.objective == config.distill.objective
    assert with_method(config, "uniform").distill.objective.on_teacher == SkewedKL(alpha=0.3)
    assert with_method(config, "amp_off").distill.objective.weighting.model_dump() == {
        "type": "ratio",
        "eps": 1e-8,
        "w_max": 1.0,
    }


def test_a_rule_without_its_signals_is_refused() -> None:
    config = Config.model_validate({"teacher": {"transport": "top_k"}})
    with pytest.raises(ConfigError, match="teacher_prob needs the teacher's whole distribution"):
        with_method(config, "vcrd_prob")
    with pytest.raises(ConfigError, match="adaptive skew needs the teacher's hidden states"):
        with_method(config, "distillm2_curriculum")
    for name in ("reverse_kl", "akl", "abkd", "amid"):
        with pytest.raises(ConfigError, match="divides by the teacher's tail"):
            with_method(config, name)
    assert with_method(config, "vcrd").teacher.top_k == 512


def test_distillm2_is_uniform_vcrd_with_equal_strengths(pairs: list[RolloutPair], teacher: HFEngine) -> None:
    released = Run(pairs, teacher, None, objective=objective("distillm2")).updates(stop=1)  # type: ignore[arg-type]
    uniform = Run(pairs, teacher, None, objective=objective("uniform")).updates(stop=1)  # type: ignore[arg-type]
    assert released.reports[0].metrics["loss"] == uniform.reports[0].metrics["loss"]


@pytest.mark.parametrize("transport", [{"transport": "logits"}, {"transport": "top_k", "top_k": 10_000}])
def test_whole_distributions_give_the_same_update_however_they_travel(
    transport: dict[str, object], pairs: list[RolloutPair], teacher: HFEngine
) -> None:
    changes = {"objective": objective("uniform"), "lora": {"r": 4, "alpha": 16, "dropout": 0}}
    exact = Run(pairs, teacher, None, **changes).updates(stop=1)  # type: ignore[arg-type]
    other = Run(pairs, teacher, None, teacher_section=transport, **changes).updates(stop=1)  # type: ignore[arg-type]
    ours, theirs = exact.reports[0].metrics, other.reports[0].metrics
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


def test_a_truncated_distribution_loses_divergence(pairs: list[RolloutPair], teacher: HFEngine) -> None:
    losses = [
        Run(
            pairs,
            teacher,
            None,  # type: ignore[arg-type]
            objective=objective("uniform"),
            teacher_section={"transport": "top_k", "top_k": k},
        )
        .updates(stop=1)
        .reports[0]
        .metrics["loss"]
        for k in (1, 8, 64)
    ]
    assert losses == sorted(losses)


@pytest.mark.parametrize("name", ["taid", "distillm", "distillm2_curriculum"])
def test_a_method_with_a_state_of_its_own_resumes_bitwise(
    name: str, pairs: list[RolloutPair], teacher: HFEngine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(name)
    whole = Run(pairs, teacher, None, objective=objective(name)).updates()  # type: ignore[arg-type]
    first = Run(pairs, teacher, None, objective=objective(name)).updates(stop=2)  # type: ignore[arg-type]
    first.backend.save(folder)
    second = Run(pairs, teacher, None, objective=objective(name))  # type: ignore[arg-type]
    second.backend.load(folder)
    second.distiller.restore(first.distiller.record())
    second.updates(first=2, stop=NUM_UPDATES)
    losses = [r.metrics["loss"] for r in first.reports + second.reports]
    assert losses == [r.metrics["loss"] for r in whole.reports]
    assert all(second.weights()[n].equal(p) for n, p in whole.weights().items())


@pytest.mark.parametrize("name", ["lv_skl", "lv_srkl", "vcrd"])
def test_packed_judging_is_checked_whichever_side_takes_part(
    name: str, pairs: list[RolloutPair], teacher: HFEngine
) -> None:
    judge = load_judge(Config().judge, policy="tiny:student-base")
    run = Run(pairs, teacher, judge, objective=objective(name)).updates(stop=1)
    assert 0 <= run.distiller.facts()["self_check_difference"] < 1e-3  # type: ignore[operator]


def test_mixing_trains_on_one_response_a_pair_and_holds_the_last_pairs_out(
    pairs: list[RolloutPair], teacher: HFEngine
) -> None:
    run = Run(pairs, teacher, None, objective=objective("distillm")).updates()  # type: ignore[arg-type]
    held_out = {p.id for p in pairs[-MIXED["validation_pairs"] :]}
    threshold = run.distiller.state.mixing.threshold  # type: ignore[union-attr]
    seen = [p for u in range(NUM_UPDATES) for p in run.batches.pairs_of(u, threshold)]
    assert not held_out & {p.id for p in seen}
    assert all((len(p.teacher_ids) == 0) != (len(p.student_ids) == 0) for p in seen)
    assert {len(p.teacher_ids) == 0 for p in seen} == {True, False}
    assert run.distiller.state.mixing is not None and run.distiller.state.mixing.reference > 0
