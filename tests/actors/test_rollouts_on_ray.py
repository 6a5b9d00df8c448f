"""jobs.rollouts with samples, a template and a mixture, killed in the middle, against a run in one process."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from jobs import rollouts
from tests.jobs.conftest import kill_job, start
from vcrd_ray.config import Config
from vcrd_ray.config.data import TinyPrompts
from vcrd_ray.config.world import WorldConfig
from vcrd_ray.data.manifest import read_manifest, with_samples
from vcrd_ray.data.problems import read_problems, read_prompts
from vcrd_ray.data.rollouts import part_path, read_pairs
from vcrd_ray.engines.hf import HFEngine
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.types import Prompt, Rollout

pytestmark = [pytest.mark.slow, pytest.mark.full, pytest.mark.usefixtures("local_ray")]
NUM_BLOCKS, PAIRS_A_BLOCK = 12, 16


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 usable prompts of two sources; one duplicate, one too long, one malformed."""
    folder = tmp_path_factory.mktemp("rollouts")
    problems, _ = read_problems(TinyPrompts(seed=2, count=96), WorldConfig())
    texts = [*(p.question for p in problems[:60]), problems[0].question + " ", problems[1].question * 20]
    pq.write_table(pa.Table.from_pylist([{"q": t, "a": "#### 1"} for t in texts]), folder / "some.parquet")
    lines = [json.dumps({"question": p.question, "answer": p.solution}) for p in problems[60:]]
    (folder / "more.jsonl").write_text("\n".join([*lines, "{broken"]))
    parquet = {"type": "parquet", "path": str(folder / "some.parquet"), "question_key": "q", "answer_key": "a"}
    jsonl = {"type": "jsonl", "path": str(folder / "more.jsonl"), "max_reject_share": 0.1}
    sources = [{"share": 61 / 97, "prompts": parquet}, {"share": 36 / 97, "prompts": jsonl}]
    config = {
        "run": {"dir": str(folder / "run"), "seed": 3},
        "cluster": {"object_store_gib": 0.1},
        "prompt": {"suffix": " How many?"},
        "rollouts": {
            "prompts": {"type": "mix", "sources": sources, "count": 97},
            "samples": 2,
            "sampling": {"temperature": 1.0, "max_new_tokens": 48},
            "max_prompt_length": 100,
            "block_size": 8,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def config(file: Path) -> Config:
    return Config.model_validate(yaml.safe_load(file.read_text()))


@pytest.fixture(scope="module")
def killed(file: Path, config: Config) -> Iterator[threading.Thread]:
    """Ends when a job on a Ray of its own has been killed with two blocks or more on disk; tests go on meanwhile."""
    process = start("jobs.rollouts", "--config", str(file))

    def kill_in_the_middle() -> None:
        while not part_path(config.run.dir / "rollouts", 1).exists() and process.poll() is None:
            time.sleep(0.02)
        if process.poll() is None:
            kill_job(process)

    thread = threading.Thread(target=kill_in_the_middle)
    thread.start()
    yield thread
    if thread.is_alive():
        kill_job(process)
    thread.join()


@pytest.fixture(scope="module")
def asked(config: Config) -> list[Prompt]:
    """A prompt for each pair, in order."""
    tokenizer = load_tokenizer(resolve_model(config.student.path))
    return with_samples(read_prompts(config.rollouts, config.prompt, config.world, tokenizer)[0], 2)


@pytest.fixture(scope="module")
def undisturbed(config: Config, asked: list[Prompt]) -> list[list[Rollout]]:
    """Teacher's and student's responses, made block by block in this process."""
    made = []
    for path, seed in ((config.teacher.path, 6), (config.student.path, 7)):
        engine = HFEngine(path, dtype="float32", device=torch.device("cpu"))
        blocks = (asked[i : i + PAIRS_A_BLOCK] for i in range(0, len(asked), PAIRS_A_BLOCK))
        made.append([r for block in blocks for r in engine.generate(block, config.rollouts.sampling, seed=seed)])
    return made


@pytest.fixture(scope="module")
def resumed(killed: threading.Thread, undisturbed: object, local_ray: None, config: Config) -> Path:
    """The killed run, finished by the same command."""
    killed.join(timeout=240)
    directory = config.run.dir / "rollouts"
    finished = {path: path.stat().st_mtime_ns for path in (directory / "parts").glob("*.parquet")}
    assert 0 < len(finished) < NUM_BLOCKS and not (directory / "timing.json").exists()
    assert rollouts.run(config) == directory
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "finished blocks are not made again"
    return directory


def rows(directory: Path) -> list[dict[str, Any]]:
    tables = [pq.read_table(part_path(directory, block)) for block in range(NUM_BLOCKS)]
    made: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
    return made


def test_killed_in_the_middle_it_ends_as_if_it_were_not(
    resumed: Path, asked: list[Prompt], undisturbed: list[list[Rollout]]
) -> None:
    made = rows(resumed)
    ids = [(row["prompt_id"], row["sample"]) for row in made]
    assert len(ids) == len(set(ids)) == NUM_BLOCKS * PAIRS_A_BLOCK
    assert [row["prompt_ids"] for row in made] == [prompt.ids.tolist() for prompt in asked]
    for side, responses in zip(("teacher", "student"), undisturbed, strict=True):
        assert [row[f"{side}_ids"] for row in made] == [r.ids.tolist() for r in responses]
        assert [row[f"{side}_logprobs"] for row in made] == [r.logprobs.tolist() for r in responses]
        assert [row[f"{side}_finish_reason"] for row in made] == [r.finish_reason for r in responses]
    assert not list((resumed / "parts").glob(".*"))


def test_a_finished_run_is_not_done_again(resumed: Path, config: Config) -> None:
    files = [*resumed.rglob("*.parquet"), resumed / "timing.json"]
    before = [path.stat().st_mtime_ns for path in files]
    rollouts.run(config)
    assert [path.stat().st_mtime_ns for path in files] == before


def test_rejected_rows_are_counted_by_kind(resumed: Path) -> None:
    manifest = read_manifest(resumed)
    assert manifest.rejects == {"duplicate": 1, "not_json": 1, "too_long": 1}
    written = [json.loads(line) for line in (resumed / "rejects.jsonl").read_text().splitlines()]
    assert Counter(row["kind"] for row in written) == manifest.rejects
    assert manifest.num_prompts == 96 and manifest.blocks == (PAIRS_A_BLOCK,) * NUM_BLOCKS


def test_pairs_are_the_samples_of_the_templated_prompts_in_order(
    resumed: Path, config: Config, asked: list[Prompt]
) -> None:
    manifest, tokenizer = read_manifest(resumed), load_tokenizer(resolve_model(config.student.path))
    pairs, rejects = read_pairs(
        resumed, teacher=manifest.teacher, tokenizer=manifest.tokenizer, vocab_size=1000, max_length=1000
    )
    assert not rejects and [p.id for p in pairs] == [p.id for p in asked]
    assert [p.id.partition("#")[2] for p in pairs[:4]] == ["", "1", "", "1"]
    assert all(p.question + " How many?" in tokenizer.decode(p.prompt_ids) for p in pairs)
    assert not any(p.question.endswith(" How many?") for p in pairs), "judges see the bare question"
    samples = zip(pairs[::2], pairs[1::2], strict=True)
    differ = sum(one.teacher_ids.tolist() != two.teacher_ids.tolist() for one, two in samples)
    assert differ > 48, "samples of one prompt are drawn apart"


def test_totals_are_those_of_the_rows_of_both_starts(resumed: Path) -> None:
    timing, made = json.loads((resumed / "timing.json").read_text()), rows(resumed)
    assert timing["pairs"] == len(made)
    for side in ("teacher", "student"):
        assert timing[side]["tokens"] == sum(len(row[f"{side}_ids"]) for row in made)
        assert timing[side]["finish_reasons"] == Counter(row[f"{side}_finish_reason"] for row in made)
        assert timing[side]["tokens_per_s"] > 0
