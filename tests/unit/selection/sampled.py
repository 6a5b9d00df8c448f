"""Rollouts with two samples a prompt, and the tiny models as scorers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import torch

from tests.conftest import STUDENT, write_rollouts
from vcrd_ray.data.manifest import ids_digest, pair_id, read_manifest
from vcrd_ray.data.rollouts import open_rollouts, part_path, read_parts, write_part
from vcrd_ray.models.checkpoint_files import load_causal_lm, load_tokenizer, resolve_model
from vcrd_ray.selection.candidates import Candidate, read_candidates
from vcrd_ray.selection.steps import StepSplitter
from vcrd_ray.selection.windows import TokenScorer


def two_samples(directory: Path, count: int = 12) -> Path:
    """Parts of half the prompts each; sample 0 of the teacher ends in another digit, sample 1 is right."""
    once = write_rollouts(directory / "once", count)
    source = read_manifest(once)
    digits = load_tokenizer(resolve_model(STUDENT)).convert_tokens_to_ids(list("0123456789"))
    rows = []
    for row in next(iter(read_parts(once, source))).to_pylist():
        *kept, digit, end = row["teacher_ids"]
        wrong = [*kept, digits[(digits.index(digit) + 3) % 10], end]
        rows += [row | {"sample": 0, "teacher_ids": wrong}, row | {"sample": 1}]
    schema = next(iter(read_parts(once, source))).schema
    manifest = source.model_copy(
        update={
            "samples": 2,
            "blocks": (count, count),
            "pairs": ids_digest(pair_id(row["prompt_id"], row["sample"]) for row in rows),
        }
    )
    path = directory / "rollouts"
    open_rollouts(path, manifest)
    for block in range(2):
        table = pa.Table.from_pylist(rows[block * count : (block + 1) * count], schema=schema)
        write_part(path, block, table, seconds=(0.0, 0.0))
    return path


def change_rows(directory: Path, change: dict[str, object], *, samples: Sequence[int] = (0, 1)) -> None:
    """Every row of every part with some columns replaced, of some samples."""
    manifest = read_manifest(directory)
    for block, table in enumerate(list(read_parts(directory, manifest))):
        rows = [row | change if row["sample"] in samples else row for row in table.to_pylist()]
        part_path(directory, block).unlink()
        write_part(directory, block, pa.Table.from_pylist(rows, schema=table.schema), seconds=(0.0, 0.0))


def candidates_of(directory: Path) -> list[Candidate]:
    """The teacher's responses, a step a line."""
    tokenizer = load_tokenizer(resolve_model(STUDENT))
    splitter = StepSplitter(tokenizer, "lines")
    return read_candidates(directory, side="teacher", tokenizer=tokenizer, splitter=splitter, max_length=500)[0]


def scorer(name: str = STUDENT, *, kind: type[TokenScorer] = TokenScorer, chunk_rows: int = 64) -> TokenScorer:
    """A tiny model in float32."""
    path = resolve_model(name)
    return kind(
        load_causal_lm(path, dtype="float32", device=torch.device("cpu")),
        vocab_size=len(load_tokenizer(path)),
        max_batch_tokens=1024,
        row_tokens=256,
        chunk_rows=chunk_rows,
    )
