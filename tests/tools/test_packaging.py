from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(
    line.lower().replace("_", "-").split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)


def test_every_package_folder_is_listed():
    rooms = ("ir", "passes", "backends", "tools")
    found = {"graphwright"} | {
        ".".join(("graphwright", *path.parent.relative_to(ROOT).parts))
        for room in rooms
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def requirements() -> list[str]:
    project = PROJECT["project"]
    extras = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    listed = (*project["dependencies"], *extras)
    return [entry for entry in listed if not entry.startswith("graphwright") and "==" not in entry]


@pytest.mark.parametrize("requirement", requirements())
def test_every_dependency_is_pinned(requirement):
    name = re.split(r"[<>=\[ ]", requirement)[0].lower()
    assert re.fullmatch(r"[0-9][0-9a-z.]*", PINS[name])


def test_the_versions_that_must_not_move():
    assert PINS["torch"] == "2.13.0"
    assert PINS["apache-tvm-ffi"] == "0.1.14.post1"


def test_the_console_script_exists():
    from graphwright.tools.cli import main

    assert PROJECT["project"]["scripts"]["graphwright"] == f"{main.__module__}:{main.__name__}"


def test_continuous_integration_calls_make_test():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test"
