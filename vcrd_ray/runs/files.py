"""Small files and directories that a reader never sees half written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vcrd_ray.errors import CheckpointError


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file that this package wrote; a last line cut off by a kill is left out."""
    return parse_jsonl(path.read_text(encoding="utf-8"))


def parse_jsonl(text: str) -> list[dict[str, Any]]:
    """The same of a file's text."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_text(path: Path, text: str) -> None:
    """Write aside and rename, so that a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`write_text` of readable JSON; pydantic models are dumped."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    write_text(path, json.dumps(plain, indent=2) + "\n")


def replace_directory(aside: Path, final: Path) -> None:
    """Make a complete directory visible under its final name; an older one of that name is removed only afterwards."""
    old = final.with_name(f".{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        if final.exists():
            os.replace(final, old)
        os.replace(aside, final)
    except OSError as error:
        raise CheckpointError(f"{final}: could not be put in place: {error}") from error
    shutil.rmtree(old, ignore_errors=True)


def read_text(path: Path) -> str | None:
    """A small file's text; None where it cannot be read, as before it was written."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return None
