"""One simplifier on one model, file to file, in a process of its own; prints one line of JSON.

Run by `graphwright.tools.simplify_bench`: `python -m graphwright.tools.simplify_worker TOOL IN OUT REPEAT`.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable

Run = Callable[[str, str], None]


PIPELINE = "simplify,fold-batch-norm"
"""What we are measured with: the rivals fold batch norms too."""


def _graphwright() -> Run:
    from ..ir.load import load
    from ..ir.save import save
    from ..passes.optimize import optimize

    return lambda source, target: save(optimize(load(source), PIPELINE).model, target)


def _onnxsim() -> Run:
    import onnx
    import onnxsim

    def run(source: str, target: str) -> None:
        simplified, _ = onnxsim.simplify(onnx.load(source))
        onnx.save(simplified, target)

    return run


def _onnxslim() -> Run:
    import onnxslim

    return lambda source, target: onnxslim.slim(source, target)


def _onnxscript() -> Run:
    import onnx_ir as ir
    import onnxscript.optimizer

    def run(source: str, target: str) -> None:
        model = ir.load(source)
        onnxscript.optimizer.optimize_ir(model)
        ir.save(model, target)

    return run


def _onnxruntime() -> Run:
    import onnxruntime

    def run(source: str, target: str) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = target
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return run


TOOLS: dict[str, Callable[[], Run]] = {
    "graphwright": _graphwright,
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxscript": _onnxscript,
    "onnxruntime": _onnxruntime,
}


def main(tool: str, source: str, target: str, repeat: int) -> dict[str, object]:
    """Run `tool` once to warm up and `repeat` times measured.

    Returns:
        Lists of wall and CPU seconds, the peak of resident memory in bytes, and that before the first run.
    """
    run = TOOLS[tool]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wall, cpu = [], []
    for count in range(repeat + 1):
        start, start_cpu = time.perf_counter(), time.process_time()
        run(source, target)
        if count or not repeat:
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"wall": wall, "cpu": cpu, "peak": peak, "baseline": before}


if __name__ == "__main__":
    # What a tool prints must not be taken for the result.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    result = main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
    print(json.dumps(result), file=channel, flush=True)
