"""Fetch TVM's runtime for other CPUs and build the runner: `python -m graphwright.backends.runner`.

With `--flags`: print what g++ needs for programs that include `model.h`.
"""

from __future__ import annotations

import shlex
import sys

from ...ir.errors import GraphwrightError
from ..target import resolve_target
from .build import build_runner, program_flags
from .runtime import fetch_runtime


def main() -> int:
    """Prepare the runners for 64-bit ARM and for this machine; prints where they are, or the flags."""
    try:
        if sys.argv[1:] == ["--flags"]:
            print(shlex.join(program_flags()))
            return 0
        fetch_runtime("aarch64")
        for name in ("armv8-a", "host"):
            print(build_runner(resolve_target(name)))
    except GraphwrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
