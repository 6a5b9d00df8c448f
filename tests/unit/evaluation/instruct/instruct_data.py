"""Where the public instruction files are: `VCRD_DATA`, else `shared/data` beside the repository. Tests of them skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[4]


def instruct_file(name: str) -> Path:
    """The file of this name below the data directory; the test is skipped where it is absent."""
    path = Path(os.environ.get("VCRD_DATA") or _ROOT.parent / "shared" / "data") / name
    if not path.is_file():
        pytest.skip(f"{path} is absent; VCRD_DATA names the directory of the public instruction files")
    return path
