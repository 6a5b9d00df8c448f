"""How far a stage is, for who waits for it: what long work is given to say so. Shows nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """One stage under way."""

    def advance(self, count: int) -> None:
        """So many more are done."""
        ...


ShowProgress = Callable[[str, int, str], AbstractContextManager[Progress]]
"""(name of the stage, how many in all, of what) -> held around it."""
