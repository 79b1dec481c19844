"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

_START = Path.cwd()


@pytest.fixture(autouse=True)
def no_reproducer_left_behind() -> Iterator[None]:
    """A command that fails on purpose must do so in a folder of its own."""
    before = set(_START.glob("graphwright-reproducer*"))
    yield
    left = set(_START.glob("graphwright-reproducer*")) - before
    assert not left, f"the test left {sorted(path.name for path in left)} in {_START}"
