"""Shapes of annotations are checked while unit tests run (see --jaxtyping-packages in pyproject.toml)."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of workers that share files, none shall begin the longest when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("full")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """For tests of what the code itself says of arguments that do not fit."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
