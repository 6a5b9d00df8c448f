"""What is kept of a task of lm-evaluation-harness, without the harness."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcrd_ray.config import Config
from vcrd_ray.errors import ConfigError
from vcrd_ray.evaluation.answers import Answer, Graded
from vcrd_ray.evaluation.harness import HarnessRows, HarnessTask
from vcrd_ray.evaluation.harness_files import harness_figures, harness_tasks, keep_task, missing_tasks

METRIC = "exact_match,last"


def task() -> HarnessTask:
    """Two sets: one that is right or wrong, one that is neither."""
    ids = ("0", "1")
    graded = [
        Graded(id=id, sample=0, correct={METRIC: id == "0"}, verdict={METRIC: "?"}, prediction=None) for id in ids
    ]
    answers = [Answer(id=id, sample=0, text="4", num_tokens=1, finish_reason="unknown") for id in ids]
    questions = [{"id": id, "question": "2 + 2?", "gold": "4"} for id in ids]
    rows = [
        HarnessRows(name="sums", questions=questions, answers=answers, graded=graded, metrics=(METRIC,)),
        HarnessRows(name="texts", questions=questions, answers=answers, graded=[], metrics=()),
    ]
    return HarnessTask(results={"results": {"sums": {"alias": "sums"}}}, rows=rows)


def test_a_task_that_was_kept_is_not_missing_and_gives_its_figures(tmp_path: Path) -> None:
    folder = tmp_path / "lm-eval"
    assert missing_tasks(folder, ["both", "other"]) == ["both", "other"]
    keep_task(folder, "both", task(), seconds=2.0)
    assert missing_tasks(folder, ["both", "other"]) == ["other"]
    (figures,) = harness_figures(tmp_path, ["both"], confidence=0.95)
    assert (figures.name, figures.num_questions, figures.metrics[0].value) == ("sums", 2, 0.5)
    written = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert written["generation"] == {"both": {"seconds": 2.0}}
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["backend"] == "lm-eval" and results["results"] == {"sums": {"alias": "sums"}}


def test_a_suite_that_the_harness_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="--backend lm-eval has no suite code"):
        harness_tasks(Config(), ["code"])
    with pytest.raises(ConfigError, match=r"set teacher\.engine to hf"):
        harness_tasks(Config.model_validate({"teacher": {"engine": "vllm"}}), ["math"])
    with pytest.raises(ConfigError, match="has nothing to do"):
        harness_tasks(Config(), [])
