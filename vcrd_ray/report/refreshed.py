"""What a run with responses written anew has left behind: who wrote what, and how the versions were checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vcrd_ray.runs.files import read_jsonl
from vcrd_ray.training.on_policy.publisher import VERSIONS_LOG
from vcrd_ray.training.on_policy.response_log import RESPONSES
from vcrd_ray.types import Decision


@dataclass(frozen=True, kw_only=True)
class RefreshData:
    """New responses of one training run."""

    folder: Path
    staleness: dict[int, int]
    """Responses written anew by the updates between their writer and the update that they were written for."""
    published: list[dict[str, Any]]
    """One row a version of the student."""


def read_refreshed(folder: Path) -> RefreshData | None:
    """What there is in a run's folder; None where nothing was written anew."""
    files = sorted((folder / RESPONSES).glob("update-*.parquet"))
    if not files:
        return None
    counts: Counter[int] = Counter()
    for file in files:
        table = pq.read_table(file, columns=["update", "student_version"])
        ages = zip(table["update"].to_pylist(), table["student_version"].to_pylist(), strict=True)
        counts.update(update - version for update, version in ages)
    log = folder / VERSIONS_LOG
    # A run that was resumed has published some versions twice.
    rows = {row["number"]: row for row in read_jsonl(log)} if log.is_file() else {}
    return RefreshData(folder=folder, staleness=dict(sorted(counts.items())), published=list(rows.values()))


def student_ids_of(data: RefreshData, decisions: Collection[Decision]) -> dict[tuple[str, int], list[int]]:
    """The new response that each decision on student prefixes was about, by (pair, version)."""
    wanted = {(d.pair, d.student_version) for d in decisions if d.student_version}
    found: dict[tuple[str, int], list[int]] = {}
    pairs = pa.array(sorted({pair for pair, _ in wanted}))
    for file in sorted((data.folder / RESPONSES).glob("update-*.parquet")):
        if wanted <= found.keys():
            break
        table = pq.read_table(
            file, columns=["pair", "student_version", "ids"], filters=[("pair", "in", pairs.to_pylist())]
        )
        named = {(row["pair"], row["student_version"]): row["ids"] for row in table.to_pylist()}
        found |= {key: ids for key, ids in named.items() if key in wanted}
    return found
