"""Benchmarks from the command line to the comparison of two models, with sets that are made here."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobs import compare, evaluate
from tests.unit.evaluation.instruct.chat_server import Asked, Said, chat_server, completion
from tests.unit.evaluation.test_harness import write_task
from vcrd_ray.config.data import PromptSection, SamplingSection, TinyPrompts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.final_answers import final_answer
from vcrd_ray.data.problems import read_problems
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.evaluation.instruct.dialogue import shown_answer, turn_ids
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.runs.files import read_jsonl
from vcrd_ray.types import Prompt

pytestmark = [pytest.mark.slow, pytest.mark.full]
NUM_QUESTIONS = 30


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of the tiny world's problems with their answers as values, asked through the model's own template."""
    folder = tmp_path_factory.mktemp("suite")
    problems, _ = read_problems(TinyPrompts(seed=7, count=NUM_QUESTIONS), WorldConfig())
    rows = [{"idx": i, "q": p.question, "a": final_answer(p.solution or "")} for i, p in enumerate(problems)]
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # So many tokens leave no room for an answer.
    long = {"idx": NUM_QUESTIONS, "q": "Ann has 1 pens. " * 120, "a": "1"}
    data.write_text(data.read_text(encoding="utf-8") + json.dumps(long) + "\n", encoding="utf-8")
    math = {
        "sets": [],
        "own": [{"name": "sums", "path": str(data), "question_key": "q", "answer_key": "a"}],
        "prompt": "own",
        "sampling": {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 64},
        "workers": 2,
    }
    file = folder / "config.yaml"
    file.write_text(
        yaml.safe_dump({"run": {"dir": str(folder / "run")}, "evaluate": {"math": math, "batch_size": 8}}),
        encoding="utf-8",
    )
    return file


@pytest.fixture(scope="module")
def evaluated(config_file: Path, local_ray: None) -> dict[str, Path]:
    """Both shipped teachers."""
    found = {}
    for label, model in (("strong", "tiny:teacher"), ("weak", "tiny:student-base")):
        arguments = ["--config", str(config_file), "--model", model, "--suites", "math", "--label", label]
        assert evaluate.main(arguments) == 0
        found[label] = config_file.parent / "run" / f"evaluate-{label}"
    return found


def figures(folder: Path) -> dict[str, Any]:
    (one,) = json.loads((folder / "figures.json").read_text())["sets"]
    return dict(one)


def test_a_suite_gives_figures_with_intervals_and_keeps_every_answer(evaluated: dict[str, Path]) -> None:
    one = figures(evaluated["strong"])
    assert one["num_questions"] == NUM_QUESTIONS + 1 and one["no_room"] == 1
    qwen, verify = one["metrics"]
    assert (qwen["metric"], verify["metric"]) == ("qwen", "math_verify")
    assert qwen["low"] < qwen["value"] < qwen["high"] and qwen["value"] > 0.8
    folder = evaluated["strong"] / "math" / "sums"
    answers = [row for file in sorted((folder / "answers").glob("*.jsonl")) for row in read_jsonl(file)]
    graded = [row for file in sorted((folder / "grades").glob("*.jsonl")) for row in read_jsonl(file)]
    assert {row["id"] for row in answers} | {str(NUM_QUESTIONS)} == {row["id"] for row in graded}
    assert sum(row["correct"]["qwen"] for row in graded) == qwen["num_correct"]
    end = load_tokenizer(resolve_model("tiny:teacher")).eos_token
    assert all(row["text"].endswith(end) for row in answers if row["finish_reason"] == "stop"), "graders cut there"


def test_results_have_the_harness_shape(evaluated: dict[str, Path]) -> None:
    results = json.loads((evaluated["strong"] / "results.json").read_text())
    row = results["results"]["sums"]
    assert row["alias"] == "sums" and 0 < row["pass@1,qwen"] <= 1 and row["pass@1_stderr,qwen"] < 0.1
    assert results["n-samples"]["sums"] == {"original": NUM_QUESTIONS + 1, "effective": NUM_QUESTIONS + 1}


def test_only_what_is_missing_is_done_again(evaluated: dict[str, Path], config_file: Path) -> None:
    folder = evaluated["weak"] / "math" / "sums"
    before = figures(evaluated["weak"])
    files = sorted([*folder.glob("answers/*"), *folder.glob("grades/*")])
    for gone in (folder / "answers" / "batch-00001.jsonl", folder / "grades" / "batch-00002.jsonl"):
        gone.unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    arguments = ["--config", str(config_file), "--model", "tiny:student-base", "--suites", "math", "--label", "weak"]
    assert evaluate.main(arguments) == 0
    assert figures(evaluated["weak"]) == before
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert all(file.exists() for file in files)


def test_a_comparison_pairs_questions_and_shows_what_changed(
    evaluated: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main([str(evaluated["weak"]), str(evaluated["strong"])]) == 0
    printed = capsys.readouterr().out
    assert "strong less weak" in printed
    page = (evaluated["strong"] / "compare.html").read_text(encoding="utf-8")
    assert page.count("<details>") > NUM_QUESTIONS and "Gold:" in page and "http" not in page
    assert compare.main([str(evaluated["strong"]), str(evaluated["strong"])]) == 0
    assert "cannot tell these two apart" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(evaluated: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no benchmark in it"):
        compare.main([str(evaluated["strong"]), str(tmp_path)])
    other = tmp_path / "evaluate-other" / "math" / "sums"
    other.mkdir(parents=True)
    (other / "questions.jsonl").write_text('{"id": "0", "question": "?", "gold": "1"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="asked different questions"):
        compare.main([str(evaluated["strong"]), str(tmp_path / "evaluate-other")])


def test_a_missing_file_is_named_before_anything_is_started(tmp_path: Path) -> None:
    arguments = ["--run.dir", str(tmp_path / "run"), "--suites", "math", "--evaluate.math.data", str(tmp_path)]
    with pytest.raises(DataError, match=r"gsm8k: .*test\.jsonl cannot be read"):
        evaluate.main([*arguments, "--dry-run"])
    if importlib.util.find_spec("evalplus") is None:
        with pytest.raises(ConfigError, match="evalplus"):
            evaluate.main(["--suites", "code", "--dry-run"])


def test_win_rates_come_from_an_endpoint_and_a_second_run_asks_nothing(tmp_path: Path, local_ray: None) -> None:
    problems, _ = read_problems(TinyPrompts(seed=7, count=4), WorldConfig())
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps({"prompt": p.question, "reference": "no idea"}) + "\n" for p in problems))

    def respond(asked: Asked, earlier: int) -> Said:
        first = re.search(r"The Start of Assistant A.s Answer\](.*?)\[The End of Assistant A", asked.text, re.DOTALL)
        assert first is not None
        return completion("[[B]]" if "no idea" in first[1] else "[[A]]")

    instruct = {
        "sets": [],
        "own": [{"name": "pairs", "path": str(data)}],
        "cache": str(tmp_path / "replies.sqlite"),
        "sampling": {"temperature": 0.0, "max_new_tokens": 48},
        "endpoint": {"model": "judge-1", "key_variable": None},
    }
    with chat_server(respond) as server:
        instruct["endpoint"]["base_url"] = server.base_url  # type: ignore[index]
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"run": {"dir": str(tmp_path)}, "evaluate": {"instruct": instruct}}))
        arguments = ["--config", str(file), "--model", "tiny:teacher", "--suites", "instruct", "--label", "x"]
        assert evaluate.main(arguments) == 0
        asked = len(server.asked)
        assert evaluate.main(arguments) == 0
        assert len(server.asked) == asked == 8
    found = json.loads((tmp_path / "evaluate-x" / "instruct.json").read_text())
    assert found["sets"]["pairs"]["win_rate"]["value"] == 1.0 and found["sets"]["pairs"]["inconsistent"] == 0
    rulings = read_jsonl(tmp_path / "evaluate-x" / "instruct" / "pairs" / "rulings.jsonl")
    assert len(rulings) == 4 and all(len(row["rulings"]) == 2 for row in rulings)


_JUDGED = "{question_1}|{question_2}|A1={answer_a_1}|A2={answer_a_2}|B1={answer_b_1}|B2={answer_b_2}|"


def test_mt_bench_asks_the_second_turn_behind_the_model_s_own_first_answer(tmp_path: Path, local_ray: None) -> None:
    problems, _ = read_problems(TinyPrompts(seed=7, count=3), WorldConfig())
    bench = tmp_path / "mt_bench"
    bench.mkdir()
    # The last one's second turn leaves no room for an answer.
    seconds = [problems[0].question, problems[1].question, "Ann has 1 pens. " * 120]
    questions = [
        {"question_id": 81 + i, "category": "writing", "turns": [p.question, second]}
        for i, (p, second) in enumerate(zip(problems, seconds, strict=True))
    ]
    prompts = [
        {"name": "pair-v2", "type": "pairwise", "system_prompt": "Judge.", "prompt_template": "{answer_a}|{answer_b}"},
        {"name": "pair-v2-multi-turn", "type": "pairwise", "system_prompt": "Judge.", "prompt_template": _JUDGED},
    ]
    rival = [{"question_id": q["question_id"], "choices": [{"turns": ["no idea", "none"]}]} for q in questions]
    for file, rows in (("question", questions), ("judge_prompts", prompts), ("rival", rival)):
        (bench / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    instruct: dict[str, Any] = {
        "data": str(tmp_path),
        "sets": ["mt_bench"],
        "rival": str(bench / "rival.jsonl"),
        "cache": str(tmp_path / "replies.sqlite"),
        "sampling": {"temperature": 0.0, "max_new_tokens": 48},
        "parsing": "strict",
    }

    def respond(asked: Asked, earlier: int) -> Said:
        first_is_rival = "no idea" in asked.text.split("|B1=" if "B1=" in asked.text else "|")[0]
        return completion("[[B]]" if first_is_rival else "[[A]]")

    with chat_server(respond) as server:
        instruct["endpoint"] = {"model": "judge-1", "key_variable": None, "base_url": server.base_url}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"run": {"dir": str(tmp_path)}, "evaluate": {"instruct": instruct}}))
        arguments = ["--config", str(file), "--model", "tiny:teacher", "--suites", "instruct", "--label", "x"]
        assert evaluate.main(arguments) == 0
        # Three questions in both orders: first turns alone, and dialogues.
        assert len(server.asked) == 12
        folder = tmp_path / "evaluate-x" / "instruct" / "mt_bench"
        before = (tmp_path / "evaluate-x" / "instruct.json").read_bytes()
        (folder / "answers-turn-2" / "batch-00000.jsonl").unlink()
        assert evaluate.main(arguments) == 0
        assert len(server.asked) == 12
        again = json.loads((tmp_path / "evaluate-x" / "instruct.json").read_text())
        assert again["sets"] == json.loads(before)["sets"], "the same answer was generated, so the replies are there"
    answers = {row["question_id"]: row["choices"][0]["turns"] for row in read_jsonl(folder / "model_answer.jsonl")}
    assert [len(turns) for turns in answers.values()] == [2, 2, 2] and answers["83"][1] == ""
    asked_as_a_dialogue = [text for text in (one.text for one in server.asked) if "A1=" in text]
    assert all(any(turns[0] in text and turns[1] in text for text in asked_as_a_dialogue) for turns in answers.values())
    # What was asked second is what an engine makes of the dialogue with the model's own first answer.
    tokenizer = load_tokenizer(resolve_model("tiny:teacher"))
    ids = turn_ids(questions[0]["turns"], answers["81"][:1], tokenizer, PromptSection())
    engine = HFEngine("tiny:teacher", dtype="float32", device=torch.device("cpu"))
    sampling = SamplingSection(temperature=0.0, max_new_tokens=48)
    (alone,) = engine.generate([Prompt(id="a", question="", gold=None, ids=ids)], sampling, seed=0)
    assert shown_answer(tokenizer.decode(alone.ids), tokenizer) == answers["81"][1] != answers["81"][0]
    found = json.loads(before)
    assert found["no_room"] == {"mt_bench": 1}
    for name in ("mt_bench", "mt_bench-turn-2"):
        assert found["sets"][name]["win_rate"]["value"] == 1.0 and found["sets"][name]["num_pairs"] == 3
    log = read_jsonl(folder / "answers-turn-2.log.jsonl")
    assert [row["batch"] for row in log] == [0, 0] and len(read_jsonl(folder / "answers.log.jsonl")) == 1


def test_the_harness_s_tasks_leave_the_same_files_and_are_not_repeated(tmp_path: Path, local_ray: None) -> None:
    pytest.importorskip("lm_eval")
    problems, _ = read_problems(TinyPrompts(seed=7, count=10), WorldConfig())
    rows = [{"question": p.question, "answer": str(final_answer(p.solution or ""))} for p in problems]
    section = {"include_path": str(write_task(tmp_path, rows)), "tasks": ["own_sums"], "bootstrap_iters": 0}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"run": {"dir": str(tmp_path)}, "evaluate": {"lm_eval": section}}))
    for label, model in (("strong", "tiny:teacher"), ("weak", "tiny:student-base")):
        arguments = ["--config", str(file), "--model", model, "--backend", "lm-eval", "--label", label]
        assert evaluate.main(arguments) == 0
    folder = tmp_path / "evaluate-weak"
    (one,) = json.loads((folder / "figures.json").read_text())["sets"]
    (metric,) = one["metrics"]
    assert (one["name"], metric["metric"], one["num_questions"]) == ("own_sums", "exact_match,last-number", 10)
    results = json.loads((folder / "results.json").read_text())
    assert results["backend"] == "lm-eval" and results["model_name"] == "tiny:student-base"
    assert results["results"]["own_sums"]["exact_match,last-number"] == metric["value"]
    assert compare.main([str(folder), str(tmp_path / "evaluate-strong")]) == 0
    done = {path: path.stat().st_mtime_ns for path in (folder / "lm-eval").rglob("*.json*")}
    assert evaluate.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    with pytest.raises(ConfigError, match="the other backend: choose another --label"):
        evaluate.main([*arguments[:4], "--suites", "math", "--label", "weak"])
