"""Whole plans: of the shipped recipes, and of a run that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from jobs.cli import load_config
from jobs.ops.plan import main, run
from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError
from vcrd_ray.planning import rates
from vcrd_ray.planning.estimate import Plan, num_updates, read_shapes
from vcrd_ray.planning.memory import total, training_items
from vcrd_ray.planning.tables import as_json

ROOT = Path(__file__).parents[3]
PAPER = ROOT / "jobs" / "configs" / "paper"
RECIPES = sorted(PAPER.glob("*.yaml"))
GPUS = ("--plan.student.gpu", "L40S", "--plan.teacher.gpu", "L40S", "--plan.judge.gpu", "L4")


def plan_of(path: Path, *options: str) -> Plan:
    config, _ = load_config("plan", "", ["--config", str(path), *GPUS, *options])
    return run(config, cluster=ROOT / "cluster.yaml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_planned_without_the_hub_and_fits_the_shipped_cluster(path: Path) -> None:
    found = plan_of(path, "--plan.num_pairs", "50000")
    assert found.placing is not None and found.placing.missing == {}
    assert [role.role for role in found.roles if role.fits is False and role.stage == "distill"] == []
    assert found.time is not None and found.time.hours is not None and found.time.hours > 0, "a length was given"
    assert found.bill is not None and found.bill.per_hour is None, "no price is shipped"
    json.dumps(as_json(found))


def test_more_judges_shorten_the_wait_where_the_judge_is_what_is_waited_for() -> None:
    recipe = PAPER / "qwen2.5-math-7b-to-1.5b.yaml"
    one, four = (plan_of(recipe, "--judge.replicas", str(count)).time for count in (1, 4))
    assert one is not None and four is not None
    assert one.simulated.judge_busy > 0.95
    assert four.simulated.wait_judge_s < one.simulated.wait_judge_s / 3


def test_prices_make_a_bill_of_the_nodes_that_are_used(tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    recipe = yaml.safe_load((PAPER / "qwen2.5-math-7b-to-1.5b.yaml").read_text())
    recipe["plan"] = {"prices": {"head": 1.0, "student": 10.0, "teacher": 3.0, "judge": 2.0}}
    prices.write_text(yaml.safe_dump(recipe))
    found = plan_of(prices)
    assert found.bill is not None and found.time is not None and found.time.hours is not None
    assert found.bill.per_hour == 1 + 10 + 2 * 3 + 2
    assert found.bill.run == pytest.approx(19 * found.time.hours)


def test_without_a_speed_there_is_no_time_and_the_plan_says_which_key_is_missing() -> None:
    found = run(Config())
    assert found.time is None and "plan.student.gpu" in (found.no_time_because or "")


def test_zero_2_divides_what_ranks_share() -> None:
    def items(zero: int) -> dict[str, int]:
        shape = read_shapes(Config()).student
        made = training_items(shape, dtype="bfloat16", zero=zero, ranks=4, lora=None, train_head=True)
        return {item.what: item.bytes for item in made}

    none, one, two, three = (items(zero) for zero in range(4))
    parameters = read_shapes(Config()).student.parameters
    assert none["optimizer states"] == 12 * parameters
    assert one["optimizer states"] == two["optimizer states"] == three["optimizer states"] == 3 * parameters
    assert one["gradients"] == 4 * two["gradients"] and two["weights"] == 4 * three["weights"]


def test_the_number_of_updates_follows_pairs_and_epochs() -> None:
    config = Config.model_validate({"distill": {"batch_size": 8, "epochs": 2}, "plan": {"num_pairs": 50}})
    assert num_updates(config) == 12


def test_measured_times_are_those_of_the_run_and_follow_the_batch() -> None:
    row = {
        "time/update_s": 10.0,
        "wait/teacher_s": 1.0,
        "wait/judge_s": 1.0,
        "time/teacher_s": 8.0,
        "time/judge_s": 16.0,
    }
    measured = Config.model_validate({"distill": {"batch_size": 32, "micro_batch_size": 8}})
    doubled = Config.model_validate({"distill": {"batch_size": 32, "micro_batch_size": 16}})
    shapes = read_shapes(measured)
    times = rates.measured_times([row] * 5, measured=measured, config=measured, shapes=shapes)
    assert times.forward_s + times.loss_s + times.backward_s == pytest.approx(8 / 4)
    assert (times.teacher_s, times.judge_teacher_s, times.judge_student_s) == (2.0, 2.0, 2.0)
    twice = rates.measured_times([row] * 5, measured=measured, config=doubled, shapes=shapes)
    assert twice.teacher_s == 2 * times.teacher_s and twice.forward_s == pytest.approx(2 * times.forward_s)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--from .*config.yaml: no such file; give the folder of a run"):
        run(Config(), measured=tmp_path)


def test_the_job_prints_one_json_object_and_fails_where_something_does_not_fit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = str(PAPER / "qwen2.5-math-7b-to-1.5b.yaml")
    assert main(["--config", recipe, *GPUS, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert {role["role"] for role in content["roles"]} == {"student", "teacher", "judge"}
    assert main(["--config", recipe, *GPUS, "--plan.student.gpu_gib", "8"]) == 1
    assert "does not fit" in capsys.readouterr().out


def test_items_add_up_to_the_total_that_is_shown() -> None:
    found = plan_of(PAPER / "qwen2.5-math-7b-to-1.5b.yaml")
    assert [role["total_bytes"] for role in as_json(found)["roles"]] == [total(r.items) for r in found.roles]  # type: ignore[attr-defined]
