"""The style rules and types of the whole repository, so that `make test` is all there is to run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("ir", "passes", "backends", "tools")


def check(*command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_ruff():
    check("ruff", "check", ".")


def test_format():
    check("ruff", "format", "--check", ".")


def test_types():
    check("mypy", *ROOMS)


@pytest.mark.skipif(shutil.which("git") is None, reason="asks git which files belong to the repository")
def test_no_address_of_a_package_index_is_written_down():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in (".txt", ".toml", ".cfg", "") and path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            assert "index-url" not in text and "find-links" not in text, name


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_downwards_only(room):
    above = ROOMS[ROOMS.index(room) + 1 :]
    for path in (ROOT / room).rglob("*.py"):
        depth = len(path.relative_to(ROOT).parts) - 1
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for name in above:
                wanted = f"from {'.' * (depth + 1)}{name}"
                assert not line.strip().startswith((f"{wanted}.", f"{wanted} ")), f"{path}:{number}: {line}"
