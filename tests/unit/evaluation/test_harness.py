"""What lm-evaluation-harness says of samples -> the rows that own benchmarks leave."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from jobs import evaluate
from vcrd_ray.config.evaluate import HarnessSection
from vcrd_ray.errors import ConfigError
from vcrd_ray.evaluation.harness import SUITE_TASKS, Harness, check_tasks, right_or_wrong
from vcrd_ray.evaluation.results import merged

TASK = """\
task: own_sums
dataset_path: json
dataset_kwargs: {data_files: {test: SUMS}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<eos>"], max_gen_toks: 64, do_sample: false}
filter_list:
  - name: last-number
    filter: [{function: regex, regex_pattern: "(-?\\\\d+)", group_select: -1}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def write_task(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A task of the harness over a file here."""
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "own_sums.yaml").write_text(TASK.replace("SUMS", str(folder / "sums.jsonl")), encoding="utf-8")
    return tasks


def sample(doc: int, **metrics: Any) -> dict[str, Any]:
    return {"doc_id": doc, "filter": "none", "metrics": list(metrics), **metrics}


def test_only_metrics_of_right_and_wrong_have_shares() -> None:
    samples = [sample(0, acc=1.0, f1=0.5, em=True), sample(1, acc=0, f1=1.0, em=False)]
    assert right_or_wrong(samples) == ("acc,none", "em,none")


def test_figures_of_other_suites_stay_beside_new_ones() -> None:
    earlier = {"a": {"x": 1, "y": 1}, "b": 1, "seconds": "1"}
    new = {"a": {"y": 2, "z": 2}, "seconds": "2"}
    assert merged(earlier, new) == {"a": {"x": 1, "y": 2, "z": 2}, "b": 1, "seconds": "2"}


def test_a_missing_harness_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"python -m pip install lm_eval=="):
        check_tasks(HarnessSection(), ["gsm8k"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--suites", "code"], "code tasks have no sandbox"),
        ([], "nothing to do: give --suites math"),
        (["--suites", "math", "--teacher.engine", "vllm"], r"set teacher\.engine to hf"),
    ],
)
def test_what_the_backend_does_not_do_is_refused(options: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        evaluate.main(["--backend", "lm-eval", "--dry-run", *options])


@pytest.mark.full
@pytest.mark.slow
def test_every_task_of_a_suite_is_known_to_the_harness_and_others_are_named() -> None:
    pytest.importorskip("lm_eval")
    check_tasks(HarnessSection(), [task for tasks in SUITE_TASKS.values() for task in tasks])
    with pytest.raises(ConfigError, match=r"no task no_such: see lm-eval ls tasks"):
        check_tasks(HarnessSection(), ["gsm8k", "no_such"])


@pytest.mark.slow
def test_the_harness_s_samples_become_rows_with_its_own_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    import torch

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from vcrd_ray.config.data import TinyPrompts
    from vcrd_ray.config.world import WorldConfig
    from vcrd_ray.data.final_answers import final_answer
    from vcrd_ray.data.problems import read_problems

    problems, _ = read_problems(TinyPrompts(seed=7, count=12), WorldConfig())
    rows = [{"question": p.question, "answer": str(final_answer(p.solution or ""))} for p in problems]
    section = HarnessSection(include_path=write_task(tmp_path, rows), tasks=("own_sums",), bootstrap_iters=0)
    found = Harness(section, "tiny:teacher", dtype="float32", device=torch.device("cpu")).evaluate("own_sums")
    (kept,) = found.rows
    assert kept.name == "own_sums" and kept.metrics == ("exact_match,last-number",)
    assert [row["gold"] for row in kept.questions] == [row["answer"] for row in rows]
    assert all(problem.question in row["question"] for problem, row in zip(problems, kept.questions, strict=True))
    right = sum(row.correct["exact_match,last-number"] for row in kept.graded)
    assert right / 12 == found.results["results"]["own_sums"]["exact_match,last-number"] > 0.5
    json.dumps(found.results)
    for row, answer, asked in zip(kept.graded, kept.answers, rows, strict=True):
        assert row.correct["exact_match,last-number"] == (row.prediction == asked["answer"])
        assert answer.num_tokens > 0 and row.prediction in answer.text
