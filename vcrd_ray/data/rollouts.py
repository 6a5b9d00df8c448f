"""Rollouts on disk: Parquet parts with a manifest that says what made them. Knows nothing of models or Ray.

<directory>/manifest.json   fingerprints, template, sampling, seeds, sizes of the blocks, counts of rejects
<directory>/parts/block-00000.parquet ...   one complete block of pairs each; its footer holds its totals
<directory>/rejects.jsonl   rejected rows and prompts, with kinds and reasons
<directory>/timing.json   totals over all parts
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from vcrd_ray.data.manifest import (
    MANIFEST,
    Manifest,
    PartTotals,
    SideTotals,
    check_manifest,
    ids_digest,
    pair_id,
    read_manifest,
    split_pair_id,
)
from vcrd_ray.data.sources import Reject
from vcrd_ray.errors import DataError
from vcrd_ray.runs.files import write_json, written_aside
from vcrd_ray.types import SIDES, Prompt, Rollout, RolloutPair

_LOG = logging.getLogger(__name__)
TIMING = "timing.json"
_TOTALS = b"vcrd_ray"  # key in a part's footer

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
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


def part_path(directory: Path, block: int) -> Path:
    """File of one block."""
    return directory / "parts" / f"block-{block:05d}.parquet"


def open_rollouts(directory: Path, manifest: Manifest) -> list[int]:
    """Start or go on with a directory; the blocks that are still missing. A damaged part is missing.

    Raises:
        DataError: the directory holds rollouts that something else made.
    """
    (directory / "parts").mkdir(parents=True, exist_ok=True)
    unrecorded = False
    if (directory / MANIFEST).exists():
        earlier = read_manifest(directory)
        unrecorded = earlier.stop_ids is None
        if unrecorded:
            earlier = earlier.model_copy(update={"stop_ids": manifest.stop_ids})
        if earlier != manifest:
            names = [n for n in Manifest.model_fields if getattr(earlier, n) != getattr(manifest, n)]
            raise DataError(
                f"{directory} holds rollouts made with another {', '.join(names)}; choose another --run.dir"
            )
    else:
        write_json(directory / MANIFEST, manifest)
    for left_over in (directory / "parts").glob(".*.tmp"):
        left_over.unlink(missing_ok=True)
    missing = [
        block for block, pairs in enumerate(manifest.blocks) if not _is_complete(part_path(directory, block), pairs)
    ]
    # At that time some engines ended responses at the tokenizer's end of sequence alone.
    if missing and unrecorded and any(len(ids) > 1 for ids in (manifest.stop_ids or {}).values()):
        raise DataError(
            f"{directory} was begun before the ids that end a response were recorded, of which {manifest.stop_ids} are more"
            " than one; choose another --run.dir"
        )
    return missing


def _is_complete(path: Path, pairs: int) -> bool:
    if not path.exists():
        return False
    try:
        found = pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError) as error:
        _LOG.warning("%s is damaged (%s): it is made again", path, error)
        return False
    if found != pairs:
        _LOG.warning("%s holds %d pairs instead of %d: it is made again", path, found, pairs)
    return bool(found == pairs)


def write_block(
    directory: Path,
    block: int,
    prompts: Sequence[Prompt],
    teacher: Sequence[tuple[Rollout, str]],
    student: Sequence[tuple[Rollout, str]],
    *,
    seconds: tuple[float, float] = (0.0, 0.0),
) -> PartTotals:
    """Write one block, `written_aside`: a part that exists is complete.

    Args:
        prompts: one for each pair, under the pair's id.
        seconds: spent generating by teacher and student.
    """
    rows = []
    for prompt, *both in zip(prompts, teacher, student, strict=True):
        prompt_id, sample = split_pair_id(prompt.id)
        row: dict[str, object] = {
            "prompt_id": prompt_id,
            "sample": sample,
            "question": prompt.question,
            "answer": prompt.gold,
            "prompt_ids": prompt.ids,
        }
        for side, (rollout, text) in zip(SIDES, both, strict=True):
            row |= {
                f"{side}_ids": rollout.ids,
                f"{side}_text": text,
                f"{side}_logprobs": rollout.logprobs,
                f"{side}_finish_reason": rollout.finish_reason,
            }
        rows.append(row)
    return write_part(directory, block, pa.Table.from_pylist(rows, schema=SCHEMA), seconds=seconds)


def write_part(directory: Path, block: int, table: pa.Table, *, seconds: tuple[float, float]) -> PartTotals:
    """Write one part with its totals in the footer."""
    sides = {
        side: SideTotals(
            tokens=pc.sum(pc.list_value_length(table[f"{side}_ids"])).as_py() or 0,
            seconds=spent,
            finish_reasons=dict(sorted(Counter(table[f"{side}_finish_reason"].to_pylist()).items())),
        )
        for side, spent in zip(SIDES, seconds, strict=True)
    }
    totals = PartTotals(pairs=table.num_rows, **sides)
    with written_aside(part_path(directory, block)) as temporary, temporary.open("wb") as file:
        pq.write_table(table.replace_schema_metadata({_TOTALS: totals.model_dump_json()}), file)
        file.flush()
        os.fsync(file.fileno())  # a rename must not reach the disk before the content
    return totals


def read_totals(directory: Path, block: int) -> PartTotals:
    """What stands in a part's footer.

    Raises:
        DataError: the part is missing or damaged.
    """
    path = part_path(directory, block)
    try:
        return PartTotals.model_validate_json((pq.read_metadata(path).metadata or {})[_TOTALS])
    except (pa.ArrowInvalid, OSError, KeyError, ValidationError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and run jobs.rollouts again") from None


def write_timing(directory: Path, num_blocks: int, *, seconds: float) -> None:
    """Totals over all parts, those of earlier starts included; `seconds` is the wall time of the last start."""
    totals = sum((read_totals(directory, block) for block in range(num_blocks)), PartTotals())
    sides = {
        side: {**made.model_dump(), "tokens_per_s": made.tokens_per_s}
        for side, made in zip(SIDES, (totals.teacher, totals.student), strict=True)
    }
    tokens = totals.teacher.tokens + totals.student.tokens
    write_json(directory / TIMING, {"seconds": seconds, "pairs": totals.pairs, "response_tokens": tokens, **sides})


def read_pairs(
    directory: Path, *, teacher: str, tokenizer: str, vocab_size: int, max_length: int
) -> tuple[list[RolloutPair], list[Reject]]:
    """All usable pairs, in the order of the prompts, and the rejected rows.

    Raises:
        DataError: incomplete, made with another teacher or tokenizer, unreadable, or nothing usable in it.
    """
    manifest = check_manifest(directory, teacher=teacher, tokenizer=tokenizer)
    pairs: list[RolloutPair] = []
    rejects: list[Reject] = []
    for block, rows in enumerate(read_parts(directory, manifest)):
        for row in rows.to_pylist():
            try:
                pairs.append(_pair(row, vocab_size=vocab_size, max_length=max_length))
            except (DataError, TypeError, ValueError) as error:
                shown = json.dumps(row, default=str)[:2000]
                rejects.append(Reject(row=shown, reason=f"block {block}, prompt {row.get('prompt_id')!r}: {error}"))
    if not pairs:
        first = f"; first reason: {rejects[0].reason}" if rejects else ""
        raise DataError(f"{directory}: no usable pair in it{first}")
    return pairs, rejects


def read_parts(directory: Path, manifest: Manifest) -> Iterator[pa.Table]:
    """All parts in order, each checked as complete when it is read, and all together at the end.

    Raises:
        DataError: a part is missing or damaged, or pairs are lost, doubled or of another run.
    """
    ids: list[str] = []
    for block, pairs in enumerate(manifest.blocks):
        table = _read_part(part_path(directory, block))
        if table.num_rows != pairs:
            raise DataError(
                f"{part_path(directory, block)} is damaged: {table.num_rows} pairs instead of {pairs}; remove it and run"
                " jobs.rollouts again"
            )
        columns = (table["prompt_id"].to_pylist(), table["sample"].to_pylist())
        ids += [pair_id(str(prompt), sample) for prompt, sample in zip(*columns, strict=True)]
        yield table
    if ids_digest(ids) != manifest.pairs:
        raise DataError(
            f"{directory}: its parts do not hold the pairs of its {MANIFEST} ({len(ids) - len(set(ids))} are doubled);"
            " some part is of another run: remove the directory and make it again"
        )


def _read_part(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, columns=SCHEMA.names)
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: the rollouts are incomplete; run jobs.rollouts again to finish them"
        ) from None
    except (pa.ArrowInvalid, OSError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); remove it and run jobs.rollouts again") from None
    if table.column_names != SCHEMA.names:
        lost = sorted(set(SCHEMA.names) - set(table.column_names))
        raise DataError(f"{path} is damaged (no column {', '.join(lost)}); remove it and run jobs.rollouts again")
    return table


def _pair(row: dict[str, Any], *, vocab_size: int, max_length: int) -> RolloutPair:
    arrays = {name: np.asarray(row[name], dtype=np.int32) for name in ("prompt_ids", "teacher_ids", "student_ids")}
    for name, ids in arrays.items():
        if len(ids) == 0:
            raise DataError(f"{name} is empty; every pair needs a prompt and two responses")
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise DataError(f"{name} has token ids outside [0, {vocab_size})")
    pair = RolloutPair(
        id=pair_id(row["prompt_id"], row["sample"]),
        question=str(row["question"]),
        prompt_ids=arrays["prompt_ids"],
        teacher_ids=arrays["teacher_ids"],
        student_ids=arrays["student_ids"],
    )
    longest = len(pair.prompt_ids) + max(len(pair.teacher_ids), len(pair.student_ids))
    if longest > max_length:
        raise DataError(f"prompt and response of {longest} tokens are longer than max_length {max_length}")
    return pair
