"""What a simplifier left, and whether it still computes the same; prints one line of JSON.

Run by `bench` in a process of its own, as a result that crashes ONNX Runtime must
not take the benchmark with it: `python -m graphwright.tools.simplifiers.judge SOURCE [RESULT]`.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..processes import answers

TOLERANCE = 1e-4
SEEDS = 3


@dataclass(frozen=True)
class Account:
    """What a file holds.

    Attributes:
        nodes: in the graph and its subgraphs, `Constant` nodes not counted.
        foreign: those of them whose operator is neither standard nor a function of the model.
        calls: those of them that call a function of the model.
        constant_bytes: of all initializers and `Constant` nodes.
    """

    nodes: int
    foreign: int
    calls: int
    constant_bytes: int


def account(path: Path) -> Account:
    """Count a model's nodes and the bytes of its constants, from the file as it is."""
    import onnx_ir as ir

    model = ir.load(path)
    nodes = foreign = calls = size = 0
    for graph in (*model.graphs(), *model.functions.values()):
        inside = not isinstance(graph, ir.Function)
        for node in graph:
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
                size += attribute.value.nbytes
            if node.op_type == "Constant" or not inside:
                continue
            nodes += 1
            called = node.op_identifier() in model.functions
            calls += called
            foreign += not called and node.domain not in ("", "ai.onnx")
        if isinstance(graph, ir.Graph):
            size += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value)
    return Account(nodes, foreign, calls, size)


def judge(source: Path, result: Path) -> tuple[float, str]:
    """Largest relative difference of the outputs over three seeds, and what is wrong with the result.

    Both models run in ONNX Runtime with optimizations off, one after the other: two large ones need not fit
    into memory together. Symbolic sizes differ from seed to seed.
    """
    import onnx

    from ...ir.compare import compare
    from ...ir.errors import GraphwrightError
    from ...ir.inputs import random_inputs
    from ...ir.load import load
    from ...ir.symbols import input_symbols

    try:
        onnx.checker.check_model(str(result))
    except Exception as error:
        return math.nan, f"the checker refuses it: {_line(error)}"
    try:
        original = load(source)
        symbols = sorted(input_symbols(original))
        feeds = [
            random_inputs(original, seed=seed, dims={s: 3 + seed + n for n, s in enumerate(symbols)})
            for seed in range(SEEDS)
        ]
        del original
        expected = _run(source, feeds)
    except Exception as error:
        return math.nan, f"the original does not run: {_line(error)}"
    try:
        actual = _run(result, feeds)
    except Exception as error:
        return math.nan, f"ONNX Runtime refuses it: {_line(error)}"
    try:
        worst = max(compare(a, b).max_rel for a, b in zip(expected, actual, strict=True))
    except GraphwrightError as error:
        return math.nan, f"outputs cannot be compared: {error}"
    return worst, "" if worst <= TOLERANCE else f"outputs differ by {worst:.2g}"


def _run(path: Path, feeds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, each), strict=True)) for each in feeds]


def _line(error: Exception) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]


def main(source: str, result: str | None = None) -> dict[str, Any]:
    """Account of a model; of a result the account, its difference from the model, and what is wrong."""
    if result is None:
        return vars(account(Path(source)))
    try:
        found = account(Path(result))
    except Exception as error:
        return {"difference": math.nan, "error": f"cannot be read: {_line(error)}"}
    difference, problem = judge(Path(source), Path(result))
    return {**vars(found), "difference": difference, "error": problem}


if __name__ == "__main__":
    with answers() as channel:
        print(json.dumps(main(*sys.argv[1:])), file=channel)
