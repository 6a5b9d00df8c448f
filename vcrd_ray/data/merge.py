"""Rollouts directories of several runs -> one directory of the same form. Knows nothing of models or Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from vcrd_ray.data.manifest import MANIFEST, Manifest, ids_digest, pair_id, read_manifest
from vcrd_ray.data.mixture import normalised
from vcrd_ray.data.problems import write_rejects
from vcrd_ray.data.rollouts import SCHEMA, read_parts, read_totals, write_part, write_timing
from vcrd_ray.data.sources import Reject
from vcrd_ray.errors import DataError
from vcrd_ray.runs.files import read_jsonl, write_json, written_aside

_SAME = ("teacher", "student", "tokenizer", "template", "prompt", "sampling", "stop_ids")


class PairMerger:
    """Tells further samples of a prompt from duplicates, and numbers the samples so that no two pairs share an id.

    Invariant: each (prompt id, sample) was given out once, and each question belongs to one directory or to one id.
    """

    def __init__(self) -> None:
        self.samples: dict[str, set[int]] = {}
        """Numbers given out, by prompt id."""
        self._question: dict[str, str] = {}
        self._first: dict[str, tuple[str, int]] = {}
        self._drawn: set[tuple[str, int, int]] = set()

    def number(self, prompt_id: str, question: str, sample: int, *, seeds: Sequence[int], directory: int) -> int | None:
        """The sample's number in the merged directory, or None for a duplicate.

        Raises:
            DataError: two questions have the same id.
        """
        key = normalised(question)
        if self._question.setdefault(prompt_id, key) != key:
            raise DataError(
                f"two different questions have the id {prompt_id!r}; make one of the rollouts again with"
                " rollouts.prompts.name set"
            )
        first_id, first_directory = self._first.setdefault(key, (prompt_id, directory))
        draws = {(prompt_id, seed, sample) for seed in seeds}
        if (first_id != prompt_id and first_directory != directory) or draws & self._drawn:
            return None
        self._drawn |= draws
        given = self.samples.setdefault(prompt_id, set())
        number = max(given) + 1 if sample in given else sample
        given.add(number)
        return number


def merge_rollouts(out: Path, directories: Sequence[Path], *, drop_duplicates: bool) -> tuple[Manifest, int]:
    """All pairs of the directories in one, in their order; the sources stay as they are.

    Pairs of one prompt that were drawn with different seeds are further samples of it and are numbered on. Pairs of one
    question with a common seed, or from two directories under two ids, are duplicates: the first directory's stay.

    Returns:
        The merged manifest, and the number of pairs that were dropped.

    Raises:
        DataError: a directory is incomplete or made otherwise than the first, an id means two questions, `out` exists, or
            there are duplicates that were not to be dropped.
    """
    if out.exists():
        raise DataError(f"{out} exists already; choose another --out, or remove it")
    manifests = [read_manifest(directory) for directory in directories]
    for directory, manifest in zip(directories, manifests, strict=True):
        _check_same(directories[0], manifests[0], directory, manifest)
    with written_aside(out, one_writer=True) as temporary:
        (temporary / "parts").mkdir(parents=True)
        return _merge_into(temporary, directories, manifests, drop_duplicates=drop_duplicates)


def _check_same(first: Path, wanted: Manifest, directory: Path, found: Manifest) -> None:
    different = [
        f"{name} {getattr(found, name)!r} there, {getattr(wanted, name)!r} in {first}"
        for name in _SAME
        if getattr(found, name) != getattr(wanted, name)
    ]
    if different:
        raise DataError(
            f"{directory} was made otherwise: {'; '.join(different)}; merge only rollouts that share"
            f" {', '.join(_SAME)}, or make these again"
        )


def _merge_into(
    out: Path, directories: Sequence[Path], manifests: Sequence[Manifest], *, drop_duplicates: bool
) -> tuple[Manifest, int]:
    merger = PairMerger()
    blocks: list[int] = []
    ids: list[str] = []
    rejects: list[Reject] = []
    dropped: list[Reject] = []
    for index, (directory, manifest) in enumerate(zip(directories, manifests, strict=True)):
        if (directory / "rejects.jsonl").exists():
            rejects += [Reject(**row) for row in read_jsonl(directory / "rejects.jsonl")]
        for block, table in enumerate(read_parts(directory, manifest)):
            rows, numbers = [], []
            for row, (prompt, question, sample) in enumerate(_identities(table)):
                number = merger.number(prompt, question, sample, seeds=manifest.seeds, directory=index)
                if number is None:
                    reason = f"in {directory} a duplicate of an earlier directory's"
                    dropped.append(Reject(row=pair_id(prompt, sample), reason=reason, kind="duplicate"))
                    continue
                rows.append(row)
                numbers.append(number)
                ids.append(pair_id(prompt, number))
            if dropped and not drop_duplicates:
                raise DataError(
                    f"pair {dropped[0].row!r} is {dropped[0].reason}; give --drop-duplicates to keep the first, or"
                    " make rollouts of other prompts or with another --run.seed"
                )
            if rows:
                kept = table.take(rows).set_column(
                    SCHEMA.get_field_index("sample"), SCHEMA.field("sample"), pa.array(numbers, pa.int32())
                )
                spent, share = read_totals(directory, block), len(rows) / table.num_rows
                seconds = (spent.teacher.seconds * share, spent.student.seconds * share)
                write_part(out, len(blocks), kept, seconds=seconds)
                blocks.append(len(rows))
    counts = sum((Counter(m.rejects) for m in manifests), Counter({"duplicate": len(dropped)}))
    merged = manifests[0].model_copy(
        update={
            "seeds": tuple(sorted({seed for manifest in manifests for seed in manifest.seeds})),
            "samples": max(map(len, merger.samples.values())),
            "num_prompts": len(merger.samples),
            "rejects": {kind: number for kind, number in sorted(counts.items()) if number},
            "blocks": tuple(blocks),
            "prompts": ids_digest(manifest.prompts for manifest in manifests),
            "pairs": ids_digest(ids),
        }
    )
    write_rejects(out / "rejects.jsonl", [*rejects, *dropped])
    write_json(out / MANIFEST, merged)
    write_timing(out, len(blocks), seconds=0.0)
    return merged, len(dropped)


def _identities(table: pa.Table) -> Iterator[tuple[str, str, int]]:
    columns = (table[name].to_pylist() for name in ("prompt_id", "question", "sample"))
    return zip(*columns, strict=True)
