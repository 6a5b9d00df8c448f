"""The safetensors files of a checkpoint and what their headers say; every damage in one line. Knows no torch.

What stands for a file that is none (a git-lfs pointer, a page of HTML) is named as such, because that is the usual damage.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcrd_ray.errors import ModelError

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_LENGTH_BYTES = 8
"""A safetensors file begins with the length of its header."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorHeader:
    """What a file says of one of its tensors."""

    dtype: str
    shape: list[int]
    begin: int
    """First byte in the file."""
    end: int
    """Byte behind the last."""


def weight_files(directory: Path) -> list[Path]:
    """The files that make the model, in the order of their names: those of the index, or the only one.

    Raises:
        ModelError: none, or one of the index is not there.
    """
    index = directory / _INDEX
    if index.is_file():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, TypeError, AttributeError):
            raise ModelError(f"{index}: no index of weights; download it again") from None
        absent = [name for name in names if not (directory / name).is_file()]
        if absent:
            raise ModelError(
                f"{directory}: {index.name} names {absent[0]!r}, which is not there"
                f" ({len(absent)} of {len(names)} files); download the checkpoint again"
            )
        return [directory / name for name in names]
    single = directory / _SINGLE
    if single.is_file():
        return [single]
    others = sorted(file.name for ending in ("*.safetensors", "*.bin", "*.pt") for file in directory.glob(ending))
    raise ModelError(
        f"{directory}: no {_SINGLE} and no {_INDEX} ({', '.join(others) or 'no weights at all'}). Pickle weights (.bin, .pt)"
        " are refused because they can run code; convert them with save_pretrained(safe_serialization=True), or complete"
        " the download"
    )


def read_header(file: Path) -> dict[str, TensorHeader]:
    """The tensors of a safetensors file by name; its size is compared with what they need.

    Raises:
        ModelError: no safetensors file, or not the whole of one.
    """
    size = file.stat().st_size
    with file.open("rb") as raw:
        length = int.from_bytes(raw.read(_LENGTH_BYTES), "little")
        start = _LENGTH_BYTES + length
        try:
            # A length beyond the file is what other formats look like, and would be read into memory.
            header: Any = json.loads(raw.read(length)) if 0 < length <= size else None
            found = {
                name: TensorHeader(
                    dtype=tensor["dtype"],
                    shape=tensor["shape"],
                    begin=start + tensor["data_offsets"][0],
                    end=start + tensor["data_offsets"][1],
                )
                for name, tensor in header.items()
                if name != "__metadata__"
            }
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            what = disguise(file) or "is another format or damaged"
            raise ModelError(f"{file} is no readable safetensors file: it {what}; download it again") from None
    needed = max((tensor.end for tensor in found.values()), default=start)
    if needed != size:
        what = "cut short" if needed > size else "longer than its header says"
        raise ModelError(
            f"{file} is no readable safetensors file: it is {what} ({size} bytes, not {needed}); download it again"
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """A tensor as it lies in a safetensors file."""

    name: str
    dtype: str
    shape: list[int]
    num_bytes: int
    content: bytes
    """All of it, or its beginning."""


def stored_tensors(directory: Path, *, max_bytes: int | None = None) -> Iterator[StoredTensor]:
    """The tensors of a directory's safetensors, by file and name, at most `max_bytes` of each read.

    From the files' headers: the library gives arrays, numpy has no bfloat16, and bytes are all that hashes need.
    """
    for file in sorted(directory.glob("*.safetensors")):
        header = read_header(file)
        with file.open("rb") as raw:
            for name, tensor in sorted(header.items()):
                raw.seek(tensor.begin)
                num_bytes = tensor.end - tensor.begin
                yield StoredTensor(
                    name=name,
                    dtype=tensor.dtype,
                    shape=tensor.shape,
                    num_bytes=num_bytes,
                    content=raw.read(num_bytes if max_bytes is None else min(num_bytes, max_bytes)),
                )


def read_json(file: Path) -> dict[str, Any]:
    """An object in a file of a checkpoint.

    Raises:
        ModelError: it cannot be read, or something else is in it.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error}); download it again") from error
    except ValueError as error:
        what = disguise(file) or f"is no JSON ({error})"
        raise ModelError(f"{file}: cannot be read: it {what}; download it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{file}: it holds no JSON object; download it again")
    return content


def disguise(file: Path) -> str:
    """What is in the place of a file that a download should have brought, as "is ..."; empty if it cannot be told."""
    with file.open("rb") as raw:
        begin = raw.read(512).lstrip()
    if not begin:
        return "is empty"
    if begin.startswith(b"version https://git-lfs"):
        return "is a pointer of git-lfs, not the file (run `git lfs pull` there)"
    if begin[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a page of HTML, such as a login or an error"
    return ""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without its pages of advice."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
