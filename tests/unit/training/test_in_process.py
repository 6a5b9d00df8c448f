"""Distillation in this process, as a notebook calls it."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError
from vcrd_ray.training import in_process


def test_the_example_of_the_docstring_runs(tmp_path: Path) -> None:
    found = doctest.testmod(in_process, extraglobs={"directory": tmp_path}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted >= 7 and found.failed == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_fine_tuning_lowers_the_loss() -> None:
    section = {"num_updates": 4, "batch_size": 8, "micro_batch_size": 8, "optim": {"lr": 2e-3, "warmup_ratio": 0.0}}
    given = {"sft": section | {"prompts": {"type": "tiny", "seed": 1, "count": 8}}}
    reports = in_process.fine_tune(Config.model_validate(given)).reports
    assert len(reports) == 4 and reports[-1].metrics["loss"] < reports[0].metrics["loss"]


def test_an_engine_that_holds_one_model_a_process_is_refused_for_pairs() -> None:
    with pytest.raises(ConfigError, match=r"teacher\.engine vllm holds one model a process"):
        in_process.make_pairs(Config.model_validate({"teacher": {"engine": "vllm"}}))
