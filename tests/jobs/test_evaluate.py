"""A suite run that is killed on the way: the same command does what is missing and comes to the same figures."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.jobs.conftest import kill_job, run, start
from vcrd_ray.config.data import TinyPrompts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.final_answers import final_answer
from vcrd_ray.data.problems import read_problems
from vcrd_ray.runs.files import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.full]
NUM_QUESTIONS, SAMPLES, BATCH = 100, 2, 4
NUM_BATCHES = NUM_QUESTIONS * SAMPLES // BATCH


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sampled, so that an answer that was drawn again would show."""
    folder = tmp_path_factory.mktemp("killed")
    problems, _ = read_problems(TinyPrompts(seed=7, count=NUM_QUESTIONS), WorldConfig())
    rows = [{"question": p.question, "answer": final_answer(p.solution or "")} for p in problems]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    math = {
        "sets": [],
        "own": [{"name": "sums", "path": str(folder / "sums.jsonl")}],
        "prompt": "own",
        "samples": SAMPLES,
        "ks": [1, 2],
        "graders": ["qwen"],
        "sampling": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 64},
    }
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"run": {"dir": str(folder)}, "evaluate": {"math": math, "batch_size": BATCH}}))
    return file


def command(config_file: Path, label: str) -> list[str]:
    suite = ["--config", str(config_file), "--model", "tiny:student-base", "--suites", "math"]
    return ["jobs.evaluate", *suite, "--label", label]


def answers(folder: Path) -> dict[tuple[str, int], Any]:
    rows = [row for file in sorted((folder / "answers").glob("*.jsonl")) for row in read_jsonl(file)]
    found = {(row["id"], row["sample"]): row["text"] for row in rows}
    assert len(found) == len(rows), "an answer stands there twice"
    return found


def test_a_killed_suite_run_goes_on_and_generates_nothing_twice(config_file: Path) -> None:
    root = config_file.parent
    folder = root / "evaluate-killed" / "math" / "sums"
    process = start(*command(config_file, "killed"))
    deadline = time.monotonic() + 300
    while len(list(folder.glob("grades/*.jsonl"))) < 3:
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline, "nothing was graded"
        time.sleep(0.02)
    kill_job(process)
    kept = {file: file.stat().st_mtime_ns for kind in ("answers", "grades") for file in folder.glob(f"{kind}/*.jsonl")}
    done = len(list(folder.glob("answers/*.jsonl")))
    assert 3 <= done < NUM_BATCHES, "killed on the way"
    assert not (root / "evaluate-killed" / "figures.json").exists()

    run(*command(config_file, "killed"))
    run(*command(config_file, "whole"))

    assert {file: file.stat().st_mtime_ns for file in kept} == kept, "what was there is not made again"
    calls = Counter(row["batch"] for row in read_jsonl(folder / "answers.log.jsonl"))
    # A kill between an answer's file and its line in the log leaves the line out.
    assert set(calls.values()) == {1} and NUM_BATCHES - 1 <= len(calls) <= NUM_BATCHES
    whole = root / "evaluate-whole" / "math" / "sums"
    assert answers(folder) == answers(whole) and len(answers(folder)) == NUM_QUESTIONS * SAMPLES
    both = [json.loads((root / f"evaluate-{label}" / "figures.json").read_text()) for label in ("killed", "whole")]
    assert both[0]["sets"] == both[1]["sets"]
    assert both[0]["generation"]["sums"]["kept_answers"] == done * BATCH
    assert both[1]["generation"]["sums"]["kept_answers"] == 0
