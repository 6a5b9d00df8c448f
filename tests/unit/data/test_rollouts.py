"""Rollouts on disk: complete or not there, and refused when something else made them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import make_pairs
from vcrd_ray.data.manifest import pair_id, read_manifest, split_pair_id, with_samples
from vcrd_ray.data.rollouts import SCHEMA, open_rollouts, part_path, read_pairs, read_totals, write_timing
from vcrd_ray.errors import DataError
from vcrd_ray.types import Prompt


def read(directory: Path, **changes: object) -> tuple:
    manifest = read_manifest(directory)
    options = {"teacher": manifest.teacher, "tokenizer": manifest.tokenizer, "vocab_size": 10_000, "max_length": 1000}
    return read_pairs(directory, **(options | changes))  # type: ignore[arg-type]


def test_pairs_come_back_as_they_were_written(rollouts_dir: Path) -> None:
    pairs, rejects = read(rollouts_dir)
    assert not rejects
    for found, written in zip(pairs, make_pairs(24), strict=True):
        assert (found.id, found.question) == (written.id, written.question)
        assert found.teacher_ids.tolist() == written.teacher_ids.tolist()
        assert found.student_ids.tolist() == written.student_ids.tolist()


@pytest.mark.parametrize("name", ["teacher", "tokenizer"])
def test_rollouts_of_another_teacher_or_tokenizer_are_refused(rollouts_dir: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"made with {name} .*, this run has {name} other"):
        read(rollouts_dir, **{name: "other"})


def test_a_missing_block_says_how_to_finish(rollouts_dir: Path) -> None:
    part_path(rollouts_dir, 0).unlink()
    with pytest.raises(DataError, match=r"incomplete; run jobs\.rollouts again"):
        read(rollouts_dir)


def test_a_damaged_block_is_named(rollouts_dir: Path) -> None:
    part_path(rollouts_dir, 0).write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"block-00000\.parquet is damaged"):
        read(rollouts_dir)


def test_malformed_rows_are_rejected(rollouts_dir: Path) -> None:
    rows = pq.read_table(part_path(rollouts_dir, 0)).to_pylist()
    rows[1]["teacher_ids"] = []
    rows[2]["student_ids"] = [99_999]
    rows[3]["prompt_ids"] = None
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part_path(rollouts_dir, 0))
    pairs, rejects = read(rollouts_dir)
    assert len(pairs) == 21
    assert "teacher_ids is empty" in rejects[0].reason and "outside [0, 10000)" in rejects[1].reason


def test_nothing_usable_is_an_error(rollouts_dir: Path) -> None:
    with pytest.raises(DataError, match="no usable pair"):
        read(rollouts_dir, max_length=3)


def test_no_rollouts_at_all_names_the_job_that_makes_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file", tmp_path / "none"):
        with pytest.raises(DataError, match=r"run jobs\.rollouts first"):
            read_manifest(path)


def test_a_damaged_manifest_is_named(rollouts_dir: Path) -> None:
    (rollouts_dir / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        read_manifest(rollouts_dir)
    (rollouts_dir / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(rollouts_dir)


def test_a_directory_made_otherwise_is_not_gone_on_with(rollouts_dir: Path) -> None:
    manifest = read_manifest(rollouts_dir)
    assert open_rollouts(rollouts_dir, manifest) == []
    with pytest.raises(DataError, match="made with another seeds"):
        open_rollouts(rollouts_dir, manifest.model_copy(update={"seeds": (5,)}))


@pytest.mark.parametrize("ids", [{"teacher": (2,), "student": (2,)}, {"teacher": (2, 7), "student": (2,)}])
def test_a_directory_of_before_stop_ids_is_gone_on_with_where_that_mixes_nothing(
    rollouts_dir: Path, ids: dict[str, tuple[int, ...]]
) -> None:
    manifest = read_manifest(rollouts_dir)
    assert manifest.stop_ids is None
    recorded = manifest.model_copy(update={"stop_ids": ids})
    assert open_rollouts(rollouts_dir, recorded) == []
    part_path(rollouts_dir, 0).unlink()
    if len(ids["teacher"]) == 1:
        assert open_rollouts(rollouts_dir, recorded) == [0]
    else:
        with pytest.raises(DataError, match=r"begun before the ids that end a response were recorded.*choose another"):
            open_rollouts(rollouts_dir, recorded)


def test_samples_are_told_apart_and_the_first_keeps_the_prompts_id() -> None:
    prompt = Prompt(id="a#b-3", question="q", gold=None, ids=np.zeros(1, np.int32))
    ids = [p.id for p in with_samples([prompt], 3)]
    assert ids == ["a#b-3", "a#b-3#1", "a#b-3#2"]
    assert [split_pair_id(i) for i in ids] == [("a#b-3", 0), ("a#b-3", 1), ("a#b-3", 2)]
    assert [pair_id(*split_pair_id(i)) for i in ids] == ids


def changed(directory: Path, rows: list[dict[str, object]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part_path(directory, 0))


def test_a_part_with_too_few_pairs_is_refused_and_made_again(rollouts_dir: Path) -> None:
    rows = pq.read_table(part_path(rollouts_dir, 0)).to_pylist()
    changed(rollouts_dir, rows[:-1])
    with pytest.raises(DataError, match="damaged: 23 pairs instead of 24"):
        read(rollouts_dir)
    assert open_rollouts(rollouts_dir, read_manifest(rollouts_dir)) == [0]


def test_a_part_cut_off_is_made_again(rollouts_dir: Path) -> None:
    path = part_path(rollouts_dir, 0)
    path.write_bytes(path.read_bytes()[:-200])
    assert open_rollouts(rollouts_dir, read_manifest(rollouts_dir)) == [0]


def test_doubled_or_foreign_pairs_are_refused(rollouts_dir: Path) -> None:
    rows = pq.read_table(part_path(rollouts_dir, 0)).to_pylist()
    for other, said in ((rows[0], "1 are doubled"), (rows[1] | {"sample": 1}, "0 are doubled")):
        changed(rollouts_dir, [rows[0], other, *rows[2:]])
        with pytest.raises(DataError, match=f"do not hold the pairs.*{said}"):
            read(rollouts_dir)


def test_what_a_kill_left_over_is_removed(rollouts_dir: Path) -> None:
    left_over = part_path(rollouts_dir, 0).with_name(".block-00000.parquet.1.tmp")
    left_over.write_text("half a part")
    assert open_rollouts(rollouts_dir, read_manifest(rollouts_dir)) == [] and not left_over.exists()


def test_totals_stand_in_every_part(rollouts_dir: Path) -> None:
    totals = read_totals(rollouts_dir, 0)
    pairs = make_pairs(24)
    assert totals.pairs == 24 and totals.teacher.tokens == sum(len(p.teacher_ids) for p in pairs)
    assert totals.student.finish_reasons == {"stop": 24}
    assert (totals + totals).student.finish_reasons == {"stop": 48}
    write_timing(rollouts_dir, 1, seconds=2.0)
    timing = json.loads((rollouts_dir / "timing.json").read_text())
    assert timing["response_tokens"] == timing["teacher"]["tokens"] + timing["student"]["tokens"]
    changed(rollouts_dir, pq.read_table(part_path(rollouts_dir, 0)).to_pylist())
    with pytest.raises(DataError, match=r"damaged.*remove it and run jobs\.rollouts again"):
        read_totals(rollouts_dir, 0)
