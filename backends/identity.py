"""Which file lies under a name: another one may take its place while a program uses the first."""

from __future__ import annotations

from pathlib import Path


def identity(path: Path) -> tuple[int, int, int] | None:
    """Device, inode and time of change of a file; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
