"""First imports of large libraries without what they would import on their own where it happens to be installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """For the time of the block these modules seem not to be installed; those that are imported already stay.

    DeepSpeed's tuner imports MLflow (2 s), and assisted generation in transformers imports scikit-learn (1 s): no process
    of a run uses either, and all would wait for both.
    """
    absent = [name for name in names if name not in sys.modules]
    for name in absent:
        sys.modules[name] = None  # type: ignore[assignment] # the documented way to make an import fail
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
