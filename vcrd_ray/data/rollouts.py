"""Rollouts on disk: Parquet parts with a manifest that says what made them. Knows nothing of models or Ray.

<directory>/manifest.json   fingerprints, sampling, seed, number of blocks
<directory>/parts/block-00000.parquet ...   one complete block of prompts each
<directory>/rejects.jsonl   prompts that were put aside, with reasons
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from vcrd_ray.config import SamplingSection
from vcrd_ray.data.problems import Reject
from vcrd_ray.errors import DataError
from vcrd_ray.runs import write_json
from vcrd_ray.types import Prompt, Rollout, RolloutPair

_MANIFEST = "manifest.json"

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        *[
            (f"{side}_{name}", kind)
            for side in ("teacher", "student")
            for name, kind in (
                ("ids", pa.list_(pa.int32())),
                ("text", pa.string()),
                ("logprobs", pa.list_(pa.float32())),
                ("finish_reason", pa.string()),
            )
        ],
    ]
)


class Manifest(BaseModel):
    """What made a rollouts directory. Two runs with equal manifests make equal rollouts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: str
    student: str
    tokenizer: str
    seed: int
    sampling: SamplingSection
    num_prompts: int
    num_rejects: int
    num_blocks: int
    prompts: str
    """Digest of the prompts in order."""


def part_path(directory: Path, block: int) -> Path:
    """File of one block."""
    return directory / "parts" / f"block-{block:05d}.parquet"


def open_rollouts(directory: Path, manifest: Manifest) -> list[int]:
    """Start or go on with a directory; the blocks that are still missing.

    Raises:
        DataError: the directory holds rollouts that something else made.
    """
    (directory / "parts").mkdir(parents=True, exist_ok=True)
    if (directory / _MANIFEST).exists():
        earlier = read_manifest(directory)
        if earlier != manifest:
            names = [n for n in Manifest.model_fields if getattr(earlier, n) != getattr(manifest, n)]
            raise DataError(
                f"{directory} holds rollouts made with another {', '.join(names)}; choose another --run.dir"
            )
    else:
        write_json(directory / _MANIFEST, manifest)
    return [block for block in range(manifest.num_blocks) if not part_path(directory, block).exists()]


def write_block(
    directory: Path,
    block: int,
    prompts: Sequence[Prompt],
    teacher: Sequence[tuple[Rollout, str]],
    student: Sequence[tuple[Rollout, str]],
) -> None:
    """Write one block aside and rename it: a part that exists is complete."""
    rows = []
    for prompt, *both in zip(prompts, teacher, student, strict=True):
        row: dict[str, object] = {
            "prompt_id": prompt.id,
            "question": prompt.question,
            "answer": prompt.answer,
            "prompt_ids": prompt.ids,
        }
        for side, (rollout, text) in zip(("teacher", "student"), both, strict=True):
            row |= {
                f"{side}_ids": rollout.ids,
                f"{side}_text": text,
                f"{side}_logprobs": rollout.logprobs,
                f"{side}_finish_reason": rollout.finish_reason,
            }
        rows.append(row)
    final = part_path(directory, block)
    aside = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), aside)
    os.replace(aside, final)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a rollouts directory.

    Raises:
        DataError: there is none, or it is damaged.
    """
    try:
        return Manifest.model_validate_json((directory / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{directory}: no rollouts here (no {_MANIFEST}); run jobs.rollouts first") from None
    except ValidationError as error:
        raise DataError(
            f"{directory / _MANIFEST} is damaged: {error.error_count()} wrong fields; make it again"
        ) from None


def check_manifest(directory: Path, *, teacher: str, tokenizer: str) -> Manifest:
    """The manifest of rollouts that this teacher and this tokenizer made.

    Raises:
        DataError: there is none, or something else made them.
    """
    manifest = read_manifest(directory)
    for name, found, wanted in (("teacher", manifest.teacher, teacher), ("tokenizer", manifest.tokenizer, tokenizer)):
        if found != wanted:
            raise DataError(
                f"{directory}: made with {name} {found}, this run has {name} {wanted};"
                f" make rollouts with this {name}, or configure the one they were made with"
            )
    return manifest


def read_pairs(
    directory: Path, *, teacher: str, tokenizer: str, vocab_size: int, max_length: int
) -> tuple[list[RolloutPair], list[Reject]]:
    """All usable pairs, in the order of the prompts, and the rows that were put aside.

    Raises:
        DataError: incomplete, made with another teacher or tokenizer, unreadable, or nothing usable in it.
    """
    manifest = check_manifest(directory, teacher=teacher, tokenizer=tokenizer)
    pairs: list[RolloutPair] = []
    rejects: list[Reject] = []
    for block in range(manifest.num_blocks):
        for row in _read_part(part_path(directory, block)):
            try:
                pairs.append(_pair(row, vocab_size=vocab_size, max_length=max_length))
            except (DataError, TypeError, ValueError) as error:
                shown = json.dumps(row, default=str)[:2000]
                rejects.append(Reject(row=shown, reason=f"block {block}, prompt {row.get('prompt_id')!r}: {error}"))
    if not pairs:
        first = f"; first reason: {rejects[0].reason}" if rejects else ""
        raise DataError(f"{directory}: no usable pair in it{first}")
    return pairs, rejects


def _read_part(path: Path) -> list[dict[str, object]]:
    try:
        table = pq.read_table(path, columns=SCHEMA.names)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: the rollouts are incomplete; run jobs.rollouts again to finish them"
        ) from None
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and run jobs.rollouts again") from None
    rows: list[dict[str, object]] = table.to_pylist()
    return rows


def _pair(row: dict[str, object], *, vocab_size: int, max_length: int) -> RolloutPair:
    arrays = {name: np.asarray(row[name], dtype=np.int32) for name in ("prompt_ids", "teacher_ids", "student_ids")}
    for name, ids in arrays.items():
        if len(ids) == 0:
            raise DataError(f"{name} is empty; every pair needs a prompt and two responses")
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise DataError(f"{name} has token ids outside [0, {vocab_size})")
    pair = RolloutPair(id=str(row["prompt_id"]), question=str(row["question"]), **arrays)
    longest = len(pair.prompt_ids) + max(len(pair.teacher_ids), len(pair.student_ids))
    if longest > max_length:
        raise DataError(f"prompt and response of {longest} tokens are longer than max_length {max_length}")
    return pair
