"""Files of JSON rows as people have them -> rows, and values of rows -> text. Knows nothing of what a row means.

JSON Lines or one array of rows, plain or gzipped, UTF-8 or what a byte-order mark says. What cannot be read is said, never
guessed: a row that is none is a `BadRow`, a file that is none a `DataError`.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import reprlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vcrd_ray.errors import DataError

RejectKind = Literal[
    "not_utf8",
    "not_json",
    "not_an_object",
    "missing_key",
    "not_text",
    "bad_chat",
    "duplicate",
    "too_long",
    "no_solution",
    "unusable",
]
"""Why something was rejected, as it is counted. `unusable`: a rollout pair that cannot be trained on."""

_GZIP = b"\x1f\x8b"
_OTHER_FILES = {
    b"PAR1": "a Parquet file: read it with type parquet, or write it as JSON Lines",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\xfd7zXZ": "packed with xz: unpack it",
    b"BZh": "packed with bzip2: unpack it",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it",
}

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 120
_REPR.maxlevel = 3


class BadRow(DataError):
    """Why a row is none, or none of its kind; whoever may leave rows out counts it."""

    def __init__(self, kind: RejectKind, reason: str) -> None:
        super().__init__(reason)
        self.kind: RejectKind = kind

    def __reduce__(self) -> tuple[type[BadRow], tuple[RejectKind, str]]:
        return BadRow, (self.kind, str(self))


class RawRow(NamedTuple):
    """A row as it stands in a file."""

    where: str
    """Its line, or its place in the array, from 1."""
    raw: object
    """The line as bytes, or the array's value."""


def shown(value: object) -> str:
    """A value in a message: as Python writes it, but never long and however deeply it is nested."""
    return _REPR.repr(value)


def read_bytes(path: Path) -> bytes:
    """What a text file holds, as UTF-8 without byte-order mark, unpacked where it is gzipped.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is no whole gzip file: {error}; get it again") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    for mark, said in _OTHER_FILES.items():
        if content.startswith(mark):
            raise DataError(f"{path} is {said}")
    encoding = json.detect_encoding(content)  # type: ignore[attr-defined]  # of the standard library, without a stub
    if not encoding.startswith("utf-8"):
        try:
            content = content.decode(encoding).encode()
        except UnicodeError as error:
            raise DataError(f"{path} is not {encoding}, as its first bytes say: {error}; save it as UTF-8") from None
    return content.removeprefix(codecs.BOM_UTF8)


def raw_rows(path: Path) -> list[RawRow]:
    """All rows of a file, none of them read yet but those of an array. Blank lines are no rows.

    Raises:
        DataError: it cannot be read, is no text, or begins an array and is none.
    """
    content = read_bytes(path)
    # Only a line feed ends a row: other line separators may stand inside a JSON string.
    lines = [RawRow(f"line {n}", line) for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    if not content.lstrip().startswith(b"["):
        return lines
    try:
        array = parse(content)
    except BadRow as error:
        # Rows one a line, of which the first is none, are still rows: the last one is an object by itself.
        if len(lines) > 1 and lines[-1].raw.lstrip().startswith(b"{") and lines[-1].raw.rstrip().endswith(b"}"):  # type: ignore[attr-defined]
            return lines
        raise DataError(f"{path} begins an array and is none: {error}; write one array, or one object a line") from None
    return [RawRow(f"item {n}", row) for n, row in enumerate(array if isinstance(array, list) else [array], 1)]


def parse(raw: bytes) -> object:
    """The JSON value of a line.

    Raises:
        BadRow: not UTF-8, or not JSON.
    """
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", f"not UTF-8: {error}; convert the file (iconv -f latin1 -t utf-8)") from None
    except RecursionError:
        raise BadRow("not_json", "not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise BadRow("not_json", f"not JSON: {error}") from None


def row_object(raw: object) -> dict[str, Any]:
    """A row as an object.

    Raises:
        BadRow: it is none.
    """
    if isinstance(raw, BadRow):
        raise raw
    row = parse(raw) if isinstance(raw, bytes) else raw
    if not isinstance(row, dict):
        raise BadRow("not_an_object", f"a {type(row).__name__}, not an object")
    return row


def value_of(row: dict[str, Any], key: str) -> object:
    """What stands under a key.

    Raises:
        BadRow: nothing does.
    """
    if key not in row:
        raise BadRow("missing_key", f"no key {key!r} (there are: {', '.join(sorted(map(_bare, row))) or 'none'})")
    return row[key]


def text_of(row: dict[str, Any], key: str, *, blank: bool = False) -> str:
    """The text under a key; a number stands for its digits.

    Args:
        blank: whether nothing but white space is a text.

    Raises:
        BadRow: no such key, a null, something else than text, a number that is none, or half a character.
    """
    value = value_of(row, key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    text = value if isinstance(value, str) else str(value) if is_number else None
    if text is None or not (blank or text.strip()):
        raise BadRow("not_text", f"{key!r} is no text: {shown(value)}")
    check_whole(text, repr(key))
    return text


def check_whole(text: str, what: str) -> None:
    """Refuse half of a surrogate pair, as a cut escape of an emoji leaves it: no tokenizer and no file takes it.

    Raises:
        BadRow: there is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            "not_text",
            f"{what} is no text: character {error.start} is half a surrogate pair ({text[error.start]!a})",
        ) from None


def objects(path: Path, *, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that is read whole or not at all, each with the words for where it stands.

    Raises:
        DataError: the file cannot be read, has no rows, or a row is no object.
    """
    try:
        rows = raw_rows(path)
    except DataError as error:
        raise DataError(f"{what}: {error}; give its JSON Lines or JSON file") from None
    if not rows:
        raise DataError(f"{what}: {path} has no rows; give its JSON Lines or JSON file")
    for where, raw in rows:
        place = f"{what}: {path}, {where}"
        try:
            yield place, row_object(raw)
        except BadRow as error:
            raise DataError(f"{place}: {error}; write one object a line, or one array of objects") from None


def _bare(text: str) -> str:
    return text if text.isprintable() else ascii(text)
