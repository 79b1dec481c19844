"""One simplifier on one model, file to file, in a process of its own; prints one line of JSON.

Run by `graphwright.tools.simplifiers.bench`:
`python -m graphwright.tools.simplifiers.worker TOOL IN OUT WARM REPEAT`.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ..processes import answers

Run = Callable[[str, str], None]


PIPELINES = {
    "graphwright": "simplify,fold-batch-norm",
    "graphwright+fuse": "simplify,fold-batch-norm,fuse",
}
"""What we are measured with: the rivals fold batch norms too, and ONNX Runtime and onnxscript fuse layers."""


def _graphwright(tool: str) -> Run:
    from ...ir.load import load
    from ...ir.save import save
    from ...passes.optimize import optimize

    def run(source: str, target: str) -> None:
        model = load(source)
        save(optimize(model, PIPELINES[tool], reload=lambda: load(source)).model, target)

    return run


def _onnxsim() -> Run:
    import onnxsim

    def run(source: str, target: str) -> None:
        onnxsim.simplify(source, output_path=target)

    return run


def _onnxslim() -> Run:
    import onnxslim

    def run(source: str, target: str) -> None:
        onnxslim.slim(source, target, save_as_external_data=_has_external_data(source))

    return run


def _onnxscript() -> Run:
    import onnx_ir as ir
    import onnxscript.optimizer

    def run(source: str, target: str) -> None:
        model = ir.load(source)
        onnxscript.optimizer.optimize_ir(model)
        data = f"{Path(target).name}.data" if _has_external_data(source) else None
        ir.save(model, target, external_data=data)

    return run


def _onnxruntime() -> Run:
    import onnxruntime

    def run(source: str, target: str) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = target
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if _has_external_data(source):
            prefix = "session.optimized_model_external_initializers"
            options.add_session_config_entry(f"{prefix}_file_name", f"{Path(target).name}.data")
            options.add_session_config_entry(f"{prefix}_min_size_in_bytes", "1024")
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return run


def _has_external_data(source: str) -> bool:
    return Path(f"{source}.data").exists()


TOOLS: dict[str, Callable[[], Run]] = {
    **{tool: lambda tool=tool: _graphwright(tool) for tool in PIPELINES},  # type: ignore[misc]
    "onnxsim": _onnxsim,
    "onnxslim": _onnxslim,
    "onnxscript": _onnxscript,
    "onnxruntime": _onnxruntime,
}


def main(tool: str, source: str, target: str, warm: int, repeat: int) -> dict[str, object]:
    """Run `tool` `warm` times to warm up and `repeat` times measured.

    Returns:
        Lists of wall and CPU seconds, and by how many bytes resident memory grew at its peak over what the
        imported tool held (0 where the system does not tell).
    """
    run = TOOLS[tool]()
    forget_peak()
    before = status_bytes("VmRSS")
    wall, cpu = [], []
    for count in range(warm + repeat):
        start, start_cpu = time.perf_counter(), time.process_time()
        run(source, target)
        if count >= warm:
            wall.append(time.perf_counter() - start)
            cpu.append(time.process_time() - start_cpu)
    return {"wall": wall, "cpu": cpu, "memory": max(status_bytes("VmHWM") - before, 0)}


def forget_peak() -> None:
    """Let the peak of resident memory begin anew."""
    # The peak that getrusage reports is inherited from the parent process; this one is our own.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def status_bytes(key: str) -> int:
    """A size in bytes out of /proc/self/status; elsewhere the largest resident set ever."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    with answers() as channel:
        result = main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
        print(json.dumps(result), file=channel)
