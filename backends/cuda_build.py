"""The process that compiles for CUDA: `python -m graphwright.backends.cuda_build FOLDER`, see `cuda.py`.

Reads the graphs and the target from FOLDER and leaves the library, its weights and an answer there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..ir.errors import GraphwrightError
from ..ir.load import load
from .compile_report import CompileReport
from .cuda import ANSWER, REQUEST, WEIGHTS
from .library import build_here
from .target import Target
from .weights import write_weights


def main(folder: Path) -> int:
    """Build what the folder asks for; the exit code is 0 if that succeeded."""
    request = json.loads(folder.joinpath(REQUEST).read_text(encoding="utf-8"))
    target = Target.from_json(request["target"])
    report = CompileReport("", target, "tvm")
    try:
        programs = {entry: load(folder / f"{entry}.onnx") for entry in request["programs"]}
        built = build_here(programs, target, folder, report, lambda step: None, shapes=request["shapes"])
        write_weights(folder / WEIGHTS, built.weights)
        answer: dict[str, Any] = {"kernels": built.kernels, "used": built.used, "code": built.code}
        answer["steps"] = report.steps
    except GraphwrightError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    except OSError as error:
        answer = {"errno": error.errno or 5}
    folder.joinpath(ANSWER).write_text(json.dumps(answer), encoding="utf-8")
    return 0 if "kernels" in answer else 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
