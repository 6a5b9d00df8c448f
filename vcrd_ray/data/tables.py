"""Files and data sets of rows, opened: JSON Lines, Parquet, the library `datasets`. Knows nothing of what a row means.

Columns that nobody asks for are not read, and no more rows are held than are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vcrd_ray.config.data import HfPrompts, JsonlPrompts, ParquetPrompts
from vcrd_ray.data.json_rows import BadRow, raw_rows
from vcrd_ray.errors import DataError

RowsPrompts = JsonlPrompts | ParquetPrompts | HfPrompts
_BATCH_ROWS = 1024


class Rows(NamedTuple):
    """A data set before its rows are read."""

    shown: str
    """What it is called in errors."""
    name: str
    """Prefix of its ids."""
    size: Callable[[], int]
    take: Callable[[Sequence[int]], list[Any]]
    """Rows by their numbers, in that order: lines as bytes, anything else as plain Python, a `BadRow` where a value is none."""


def open_rows(section: RowsPrompts) -> Rows:
    """Open a data set and check its columns; no row is read.

    Raises:
        DataError: no such file, folder, split or column.
    """
    match section:
        case JsonlPrompts():
            return _open_jsonl(section)
        case ParquetPrompts():
            return _open_parquet(section)
        case HfPrompts():
            return _open_hf(section)


def _open_jsonl(section: JsonlPrompts) -> Rows:
    if not section.path.is_file():
        said = "a folder" if section.path.is_dir() else "no such file"
        raise DataError(f"{section.path}: {said}; give a file of JSON rows as prompts.path")

    @cache
    def rows() -> list[Any]:
        return [row.raw for row in raw_rows(section.path)]

    return Rows(
        shown=str(section.path),
        name=section.name or section.path.stem,
        size=lambda: len(rows()),
        take=lambda numbers: [rows()[n] for n in numbers],
    )


def _open_parquet(section: ParquetPrompts) -> Rows:
    path = section.path
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give a Parquet file, or a folder of them, as prompts.path")
    if not files:
        raise DataError(f"{path}: no *.parquet file in this folder; give the folder that holds them as prompts.path")
    size, columns = 0, _columns(section)
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                size += opened.metadata.num_rows
                names = opened.schema_arrow.names
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not a readable Parquet file ({error}); write it again, or remove it") from None
        _check_columns(section, str(file), names)

    def batches() -> Iterable[Any]:
        for file in files:
            with pq.ParquetFile(file) as opened:
                yield from opened.iter_batches(batch_size=_BATCH_ROWS, columns=columns)

    return Rows(
        shown=str(path),
        name=section.name or (path.name if path.is_dir() else path.stem),
        size=lambda: size,
        take=lambda numbers: _gather(batches(), numbers, shown=str(path)),
    )


def _open_hf(section: HfPrompts) -> Rows:
    dataset = _load_hf(section)
    _check_columns(section, section.path, dataset.column_names)
    wanted = dataset.select_columns(_columns(section)).with_format("arrow")
    parts = [Path(section.path).name, section.subset, section.split]
    return Rows(
        shown=section.path,
        name=section.name or "-".join(part for part in parts if part),
        size=lambda: len(dataset),
        take=lambda numbers: _gather(wanted.iter(batch_size=_BATCH_ROWS), numbers, shown=section.path),
    )


def on_hub(section: HfPrompts) -> bool:
    """Whether a data set is named as on the hub and is no folder here."""
    from vcrd_ray.models.checkpoint_files import must_be_fetched

    return must_be_fetched(section.path)


def _load_hf(section: HfPrompts) -> Any:
    try:
        import datasets  # an extra: nothing else needs it
    except ImportError:
        raise DataError(
            "prompts.type hf needs the library datasets: pip install datasets, or use type parquet or jsonl"
        ) from None
    if on_hub(section):
        if section.split is None:
            raise DataError(f"{section.path}: which split? set prompts.split, for example to train")
        try:
            return datasets.load_dataset(
                section.path, name=section.subset, split=section.split, revision=section.revision
            )
        except Exception as error:  # the library raises many kinds; all mean the same to the user
            raise DataError(
                f"{section.path}: no such folder here, and the hub did not give this data set with subset"
                f" {section.subset}, split {section.split}, revision {section.revision} ({type(error).__name__}: {error});"
                " check the spelling, the network and HF_TOKEN, or save it with save_to_disk where there is a network"
                " and give the folder"
            ) from error
    folder = Path(section.path).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{section.path}: no such folder, and no data set of the hub either (those look like owner/name)"
        )
    for key in ("subset", "revision"):
        if getattr(section, key) is not None:
            raise DataError(f"{folder}: prompts.{key} has no effect on a folder: remove it")
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{folder}: not written by save_to_disk ({error}); for a folder of Parquet files use prompts.type parquet"
        ) from None
    if not isinstance(found, datasets.DatasetDict):
        if section.split is not None:
            raise DataError(f"{folder}: a data set without splits, so prompts.split has no effect: remove it")
        return found
    if section.split not in found:
        raise DataError(
            f"{folder}: {'which split?' if section.split is None else f'no split {section.split!r};'}"
            f" set prompts.split to one of {', '.join(found)}"
        )
    return found[section.split]


def _columns(section: RowsPrompts) -> list[str]:
    if section.messages_key is not None:
        return [section.messages_key]
    return list(dict.fromkeys(key for key in (section.question_key, section.answer_key) if key))


def _check_columns(section: RowsPrompts, shown: str, names: Sequence[str]) -> None:
    for column in _columns(section):
        if column not in names:
            raise DataError(
                f"{shown}: no column {column!r} (there are: {', '.join(names)}); set prompts.question_key,"
                " prompts.answer_key (null: no answers) or prompts.messages_key"
            )


def _gather(batches: Iterable[Any], numbers: Sequence[int], *, shown: str) -> list[Any]:
    """Rows by number out of a stream of batches, so that no more is held than was asked for."""
    wanted = np.sort(np.asarray(numbers, dtype=np.int64))
    found: dict[int, Any] = {}
    start = 0
    try:
        for batch in batches:
            inside = wanted[slice(*np.searchsorted(wanted, (start, start + batch.num_rows)))]
            if len(inside):
                found.update(zip(inside.tolist(), _plain(batch.take(pa.array(inside - start))), strict=True))
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shown}: cannot be read ({error}); write it again") from None
    return [found[n] for n in numbers]


def _plain(batch: Any) -> list[Any]:
    """The rows of an Arrow batch. Its texts may be no UTF-8 and its dates may be none: those rows alone are bad."""
    try:
        rows: list[Any] = batch.to_pylist()
        return rows
    except UnicodeDecodeError as error:
        found: object = BadRow("not_utf8", f"not UTF-8: {error}")
    except (ValueError, OverflowError) as error:
        found = BadRow("not_text", f"holds a value that cannot be read: {error}")
    if batch.num_rows == 1:
        return [found]
    return [row for at in range(batch.num_rows) for row in _plain(batch.slice(at, 1))]
