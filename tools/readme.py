"""`make readme`: put the tables that `make demo` and `make bench` wrote between the README's markers."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ..ir.errors import ToolError


def splice(text: str, marker: str, content: str) -> str:
    """The text with everything between `<!-- marker -->` and `<!-- /marker -->` replaced.

    Raises:
        ToolError: the text does not hold that pair of markers exactly once.
    """
    pattern = re.compile(rf"(<!-- {re.escape(marker)} -->\n).*?(<!-- /{re.escape(marker)} -->)", re.DOTALL)
    spliced, count = pattern.subn(lambda match: f"{match[1]}{content.strip()}\n{match[2]}", text)
    if count != 1:
        raise ToolError(f"the README holds {count} pairs of markers '{marker}' instead of one")
    return spliced


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace the given tables in a README.

    Returns:
        The exit code: 2 where a file is missing or has no markers.
    """
    parser = argparse.ArgumentParser(prog="python -m graphwright.tools.readme", description=__doc__)
    parser.add_argument("readme", type=Path)
    parser.add_argument("--table", action="append", default=[], metavar="MARKER=FILE")
    given = parser.parse_args(arguments)
    try:
        text = given.readme.read_text(encoding="utf-8")
        for entry in given.table:
            marker, _, file = entry.partition("=")
            text = splice(text, marker, Path(file).read_text(encoding="utf-8"))
        given.readme.write_text(text, encoding="utf-8")
    except (ToolError, OSError) as error:
        print(f"readme: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
