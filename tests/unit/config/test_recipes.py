"""Every shipped config loads and dry-runs, and every row of the paper's tables names one that exists."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import yaml

from jobs import pipeline, tables
from jobs.cli import load_config
from jobs.paper import FOLDER, read_tables
from vcrd_ray.config import Config
from vcrd_ray.config.methods import METHODS, with_method

pytestmark = pytest.mark.slow

CONFIGS = sorted((Path(pipeline.__file__).parent / "configs").rglob("*.yaml"))
# Of the method's specification: lambdas, epochs or updates, learning rate of the fine-tuning stage.
PAPER = {
    "qwen2.5-math-7b-to-1.5b": (1, 1, 2, None, 5e-6),
    "qwen2-math-7b-to-1.5b": (2, 1.5, 2, None, 5e-6),
    "qwen2.5-coder-7b-to-1.5b": (2, 1, 1, 600, 5e-6),
    "qwen2.5-coder-14b-to-7b": (2, 1, 1, 400, None),
    "deepseek-coder-6.7b-to-1.3b": (2, 1, 1, None, 5e-6),
    "qwen2.5-7b-to-1.5b": (2, 2, 3, None, 5e-5),
    "qwen2-7b-to-1.5b": (2, 1, 3, None, 5e-5),
}


def data_options(path: Path, folder: Path) -> list[str]:
    """Options that put a one-line file in the place of each data set."""
    text = yaml.safe_load(path.read_text())
    options = []
    for section in ("sft", "rollouts", "evaluate"):
        prompts = text.get(section, {}).get("prompts", {})
        if prompts.get("type") == "jsonl":
            file = folder / f"{section}.jsonl"
            keys = [prompts.get("question_key", "question"), prompts.get("answer_key", "answer")]
            file.write_text(json.dumps({key: "#### 1" for key in keys if key}) + "\n")
            options += [f"--{section}.prompts.path", str(file)]
    return options


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_dry_runs_with_every_method_that_fits(path: Path, tmp_path: Path) -> None:
    config, _ = load_config("pipeline", "", ["--config", str(path)])
    methods = [
        m for m in METHODS if not with_method(config, m).distill.objective.needs_judge or "deepseek" not in path.stem
    ]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        argv = ["--config", str(path), *data_options(path, tmp_path), "--methods", *methods, "--dry-run"]
        assert pipeline.main(argv) == 0
    assert "placement:" in printed.getvalue()
    resolved = yaml.safe_load(printed.getvalue().split("\nplacement:")[0])
    assert Config.model_validate(resolved).teacher == config.teacher


def test_a_dry_run_names_the_data_set_that_is_missing() -> None:
    from vcrd_ray.errors import DataError

    given = ["--rollouts.prompts.type", "jsonl", "--rollouts.prompts.path", "data/none.jsonl"]
    with pytest.raises(DataError, match=r"data/none\.jsonl: no such file"):
        pipeline.main([*given, "--dry-run"])


def test_a_pipeline_whose_prompts_have_no_golds_measures_no_accuracy() -> None:
    """Its evaluation's file is not even looked for: win rates and benchmarks are jobs.evaluate's."""
    for name in ("qwen2-7b-to-1.5b", "qwen2.5-7b-to-1.5b"):
        argv = ["--config", str(FOLDER / f"{name}.yaml"), "--dry-run"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert pipeline.main(argv) == 0


@pytest.mark.parametrize("name", PAPER)
def test_recipes_have_the_paper_s_hyperparameters(name: str) -> None:
    config, _ = load_config("pipeline", "", ["--config", str(FOLDER / f"{name}.yaml")])
    lambda_teacher, lambda_student, epochs, num_updates, sft_lr = PAPER[name]
    distill, objective = config.distill, config.distill.objective
    assert (objective.lambda_teacher, objective.lambda_student) == (lambda_teacher, lambda_student)
    assert (distill.epochs, distill.num_updates) == (epochs, num_updates)
    assert distill.batch_size == 128 and distill.max_length == 1024 and config.rollouts.max_prompt_length == 512
    assert distill.lora is not None
    assert (distill.lora.r, distill.lora.alpha, distill.lora.dropout) == (16, 128, 0.05)
    assert distill.optim.lr == 5e-5 and distill.optim.warmup_ratio == 0.1
    if sft_lr is None:
        assert config.sft.skip
    else:
        assert config.sft.optim.lr == sft_lr and config.sft.max_length == 2048 and config.sft.packing
    assert objective.on_teacher.model_dump() == {"type": "skewed_kl", "alpha": 0.1, "adaptive": False}


def test_rows_of_the_paper_s_tables_name_configs_and_methods_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    found = read_tables()
    assert {t.table for t in found} == {"1", "2", "3", "4", "5", "6", "7", "10", "12"}
    for table in found:
        config, _ = load_config("pipeline", "", ["--config", str(table.path)])
        for row in table.rows:
            with_method(config, row.method)
    assert tables.main(["paper", "--table", "10"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "58.03" in shown and "--methods difference" in shown and "LV-SKL" not in shown


def test_every_setting_of_the_tiny_world_is_a_valid_config() -> None:
    config, _ = load_config("tables", "", ["--config", str(tables.DEFAULT_CONFIG)])
    changed = {name: tables.with_setting(config, name) for name in tables.SETTINGS}
    assert changed["default"] == config and changed["oracle"].judge.type == "oracle"
    assert changed["weak_hot_teacher"].rollouts.sampling.max_new_tokens == 64
    assert changed["full_fine_tuning"].distill.lora is None
    assert all(new != config for name, new in changed.items() if name != "default")
