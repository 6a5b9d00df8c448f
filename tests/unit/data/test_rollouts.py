"""Rollouts on disk: complete or not there, and refused when something else made them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import make_pairs
from vcrd_ray.data.rollouts import SCHEMA, open_rollouts, part_path, read_manifest, read_pairs
from vcrd_ray.errors import DataError


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


def test_malformed_rows_are_put_aside(rollouts_dir: Path) -> None:
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
    with pytest.raises(DataError, match=r"run jobs\.rollouts first"):
        read_manifest(tmp_path)


def test_a_damaged_manifest_is_named(rollouts_dir: Path) -> None:
    (rollouts_dir / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        read_manifest(rollouts_dir)


def test_a_directory_made_otherwise_is_not_gone_on_with(rollouts_dir: Path) -> None:
    manifest = read_manifest(rollouts_dir)
    assert open_rollouts(rollouts_dir, manifest) == []
    with pytest.raises(DataError, match="made with another seed"):
        open_rollouts(rollouts_dir, manifest.model_copy(update={"seed": 5}))
