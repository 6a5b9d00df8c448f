"""Regenerated responses on disk: one Parquet file an update and rank, to be used again, looked at, or counted.

responses/update-000012-rank-000.parquet
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vcrd_ray.runs.files import written_aside
from vcrd_ray.types import IntArray, Rollout

RESPONSES = "responses"
"""The folder in a run's directory."""

SCHEMA = pa.schema(
    [
        ("pair", pa.string()),
        ("update", pa.int32()),
        ("student_version", pa.int32()),
        ("ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("logprobs", pa.list_(pa.float32())),
        ("finish_reason", pa.string()),
    ]
)
_NAME = re.compile(r"update-(\d+)-rank-\d+\.parquet")


class ResponseLog:
    """The new responses of one run."""

    def __init__(self, run_dir: Path, *, decode: Callable[[IntArray], str]) -> None:
        self._directory = run_dir / RESPONSES
        self._decode = decode
        self._directory.mkdir(parents=True, exist_ok=True)
        self._read = lru_cache(maxsize=64)(_read)

    def cut(self, next_update: int) -> None:
        """Forget what was written for updates that are done again."""
        for path in self._directory.glob("update-*.parquet"):
            found = _NAME.fullmatch(path.name)
            if found and int(found[1]) >= next_update:
                path.unlink(missing_ok=True)
        self._read.cache_clear()

    def write(self, update: int, rank: int, *, version: int, rollouts: Sequence[Rollout]) -> None:
        """Keep a rank's responses of an update, written aside and renamed."""
        rows = [
            {
                "pair": rollout.prompt_id,
                "update": update,
                "student_version": version,
                "ids": rollout.ids,
                "text": self._decode(rollout.ids),
                "logprobs": rollout.logprobs,
                "finish_reason": rollout.finish_reason,
            }
            for rollout in rollouts
        ]
        with written_aside(self._path(update, rank)) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), temporary)

    def find(self, pair: str, update: int, rank: int) -> tuple[IntArray, int] | None:
        """(token ids, version) of a pair's response written for an update, or None."""
        path = self._path(update, rank)
        return self._read(path).get(pair) if path.exists() else None

    def _path(self, update: int, rank: int) -> Path:
        return self._directory / f"update-{update:06d}-rank-{rank:03d}.parquet"


def _read(path: Path) -> dict[str, tuple[IntArray, int]]:
    rows = pq.read_table(path, columns=["pair", "ids", "student_version"]).to_pylist()
    return {row["pair"]: (np.asarray(row["ids"], dtype=np.int32), int(row["student_version"])) for row in rows}
