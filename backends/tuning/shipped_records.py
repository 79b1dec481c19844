"""The tuning records that come with the package; a verdict of the user's own comes before theirs."""

from __future__ import annotations

import functools
from pathlib import Path

from ...ir.errors import CompileError
from .database import BadLine, Database, merge

FOLDER = Path(__file__).with_name("shipped")


@functools.lru_cache(maxsize=1)
def shipped_records() -> Database:
    """All of them. A file that is damaged or of another version is passed over and named in `bad_lines`."""
    return read_records(FOLDER)


def read_records(folder: Path) -> Database:
    """The records of all databases in a folder, in memory."""
    found, refused = [], []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            found.append(Database.open(path))
        except CompileError as error:
            refused.append(BadLine(str(path), 1, str(error)))
    merged = merge(found)
    merged.bad_lines += refused
    return merged
