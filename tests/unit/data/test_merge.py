"""Rollouts of several runs in one directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import merge_rollouts as job
from tests.conftest import STUDENT, write_rollouts
from vcrd_ray.data.manifest import Manifest, ids_digest, pair_id, read_manifest
from vcrd_ray.data.merge import PairMerger, merge_rollouts
from vcrd_ray.data.rollouts import part_path, read_pairs, write_part
from vcrd_ray.errors import ConfigError, DataError
from vcrd_ray.models.checkpoint_files import load_tokenizer, resolve_model
from vcrd_ray.report.run_data import read_checked
from vcrd_ray.runs.files import write_json


def change(directory: Path, rows: Any, **fields: Any) -> Path:
    """The rows of a directory's one part and fields of its manifest, changed in place."""
    table = pq.read_table(part_path(directory, 0))
    table = table.from_pylist([rows(row) for row in table.to_pylist()], schema=table.schema)
    write_part(directory, 0, table, seconds=(2.0, 4.0))
    ids = map(pair_id, table["prompt_id"].to_pylist(), table["sample"].to_pylist())
    manifest = read_manifest(directory).model_copy(update={"pairs": ids_digest(ids), **fields})
    write_json(directory / "manifest.json", manifest)
    return directory


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return change(write_rollouts(tmp_path / "first", 6), lambda row: row, rejects={"too_long": 2})


def other_prompts(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"prompt_id": "other-" + row["prompt_id"], "question": row["question"] + " Now?"}


def read(directory: Path, manifest: Manifest) -> list[str]:
    pairs, rejects = read_pairs(
        directory, teacher=manifest.teacher, tokenizer=manifest.tokenizer, vocab_size=10_000, max_length=1000
    )
    assert not rejects
    return [pair.id for pair in pairs]


def test_other_prompts_are_put_behind_each_other(tmp_path: Path, first: Path) -> None:
    second = change(write_rollouts(tmp_path / "second", 4), other_prompts, rejects={"too_long": 1, "not_json": 3})
    (second / "rejects.jsonl").write_text('{"kind": "not_json", "reason": "row 3: not JSON", "row": "{"}\n')
    manifest, num_dropped = merge_rollouts(tmp_path / "out", [first, second], drop_duplicates=False)
    assert manifest == read_manifest(tmp_path / "out") and num_dropped == 0
    assert manifest.blocks == (6, 4) and manifest.num_prompts == 10 and manifest.seeds == (0,)
    assert manifest.rejects == {"not_json": 3, "too_long": 3}
    ids = read(tmp_path / "out", manifest)
    assert ids == [f"tiny-2-{i}" for i in range(6)] + [f"other-tiny-2-{i}" for i in range(4)]
    assert (tmp_path / "out" / "rejects.jsonl").read_text() == (second / "rejects.jsonl").read_text()
    for number, source in enumerate((first, second)):
        merged, whole = (pq.read_table(part_path(d, n)) for d, n in ((tmp_path / "out", number), (source, 0)))
        assert merged.equals(whole)
    timing = json.loads((tmp_path / "out" / "timing.json").read_text())
    assert timing["pairs"] == 10 and timing["teacher"]["seconds"] == 4.0 and timing["student"]["seconds"] == 8.0


def test_other_seeds_give_further_samples_that_can_be_merged_on(tmp_path: Path, first: Path) -> None:
    second = change(write_rollouts(tmp_path / "second", 4), lambda row: row, seeds=(1,))
    third = change(write_rollouts(tmp_path / "third", 1), lambda row: row, seeds=(2,))
    merge_rollouts(tmp_path / "some", [first, second], drop_duplicates=False)
    manifest, num_dropped = merge_rollouts(tmp_path / "out", [tmp_path / "some", third], drop_duplicates=False)
    assert num_dropped == 0 and manifest.seeds == (0, 1, 2) and manifest.samples == 3 and manifest.num_prompts == 6
    ids = read(tmp_path / "out", manifest)
    assert ids[6:] == [*(f"tiny-2-{i}#1" for i in range(4)), "tiny-2-0#2"] and len(set(ids)) == 11
    tokenizer = load_tokenizer(resolve_model(STUDENT))
    checked, _, _ = read_checked(tmp_path / "out", tokenizer, max_length=1000, seed=0)
    assert len(checked) == 22 and {response.prompt for response in checked} == set(range(6)), "prompts, not pairs"


@pytest.mark.parametrize("renamed", [False, True])
def test_duplicates_are_refused_or_dropped_and_said(tmp_path: Path, first: Path, renamed: bool) -> None:
    name = "again-" if renamed else ""
    second = change(write_rollouts(tmp_path / "second", 8), lambda row: row | {"prompt_id": name + row["prompt_id"]})
    with pytest.raises(DataError, match=rf"pair '{name}tiny-2-0'.*--drop-duplicates.*--run\.seed"):
        merge_rollouts(tmp_path / "out", [first, second], drop_duplicates=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["first", "second"], "nothing is left of a refused merge"
    manifest, num_dropped = merge_rollouts(tmp_path / "out", [first, second], drop_duplicates=True)
    assert num_dropped == 6 and manifest.blocks == (6, 2) and manifest.rejects == {"duplicate": 6, "too_long": 2}
    assert read(tmp_path / "out", manifest)[6:] == [f"{name}tiny-2-6", f"{name}tiny-2-7"]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [r["row"] for r in rejects] == [f"{name}tiny-2-{i}" for i in range(6)]


@pytest.mark.parametrize("field", ["teacher", "student", "tokenizer", "template"])
def test_what_differs_is_named(tmp_path: Path, first: Path, field: str) -> None:
    second = change(write_rollouts(tmp_path / "second", 4), other_prompts, **{field: "another"})
    with pytest.raises(DataError, match=rf"second was made otherwise: {field} 'another' there, '\w+' in .*first"):
        merge_rollouts(tmp_path / "out", [first, second], drop_duplicates=True)


def test_one_id_for_two_questions_is_refused(tmp_path: Path, first: Path) -> None:
    second = change(write_rollouts(tmp_path / "second", 4), lambda row: row | {"question": "another?"})
    with pytest.raises(DataError, match=r"have the id 'tiny-2-0'.*prompts\.name"):
        merge_rollouts(tmp_path / "out", [first, second], drop_duplicates=True)


def test_incomplete_rollouts_and_an_existing_target_are_refused(tmp_path: Path, first: Path) -> None:
    second = change(write_rollouts(tmp_path / "second", 4), other_prompts)
    with pytest.raises(DataError, match="exists already"):
        merge_rollouts(first, [first, second], drop_duplicates=False)
    part_path(second, 0).unlink()
    with pytest.raises(DataError, match="incomplete"):
        merge_rollouts(tmp_path / "out", [first, second], drop_duplicates=False)
    with pytest.raises(DataError, match="no rollouts here"):
        merge_rollouts(tmp_path / "out", [first, tmp_path / "none"], drop_duplicates=False)


def test_equal_questions_of_one_directory_stay_as_they_were_made() -> None:
    merger = PairMerger()
    numbers = [merger.number(i, "q", 0, seeds=(0,), directory=0) for i in ("a-0", "a-1")]
    assert numbers == [0, 0] and merger.number("b-0", "q", 0, seeds=(1,), directory=1) is None


def test_the_job_says_what_it_did(tmp_path: Path, first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    second = change(write_rollouts(tmp_path / "second", 4), other_prompts)
    assert job.main(["--out", str(tmp_path / "out"), str(first), str(second)]) == 0
    assert "out: 10 pairs of 10 prompts, 0 dropped" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="two directories"):
        job.main(["--out", str(tmp_path / "x"), str(first)])
