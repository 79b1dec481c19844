"""int8 on TVM beside float on TVM and ONNX Runtime on the same QDQ file: latency, size, agreement.

    python -m graphwright.tools.int8_bench [--only REGEX] [--threads 1,2] [--trials N] [-o FILE.md]

Every contender of a model is timed in turns. Weights and calibration data are random: compared are speed,
size, and how far the compiled library is from ONNX Runtime with its optimizations off on the same file.
Sizes are those of library and weights, beside the same for float; int4 is weight-only.
"""

from __future__ import annotations

import gc
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..ir.errors import GraphwrightError, ToolError
from .bench import machine
from .console import print_line, progress
from .measure import measure_interleaved, timing_text
from .options import parse_threads
from .steps import markdown_table

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..backends.executable import Executable
    from ..backends.timing import Timing

MODELS = (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3", "efficientnet_b0"),
    *("vit_s16", "swin_t", "bert_base"),
)
WEIGHTS_INT4 = "quantize-weights{form=int4}"
FLOAT = "simplify,fold-batch-norm,fuse"
INT8, INT4, FLOAT_TVM = "int8", "int4", "float"
ORT, ORT_FLOAT = "ONNX Runtime int8", "ONNX Runtime float"
_CALIBRATION_SAMPLES = 2


@dataclass
class Row:
    """What was measured about one model; `timings` by (contender, threads)."""

    name: str
    sqnr: float
    sizes: dict[str, int]
    """Bytes of the artifact by form of the weights: int8, int4 (weight-only), float."""
    integer: tuple[int, int]
    """Calls of kernels whose products are of integers, and of all others that multiply."""
    timings: dict[tuple[str, int], Timing] = field(default_factory=dict)

    def share(self, form: str) -> float:
        """Size of an artifact over that of the float one."""
        return self.sizes[form] / self.sizes[FLOAT_TVM]

    def ratio(self, rival: str, threads: int) -> float:
        """How many times longer a rival takes."""
        return self.timings[rival, threads].median_ms / self.timings[INT8, threads].median_ms


def main(
    only: Annotated[str | None, typer.Option("--only", help="Regular expression; models to measure.")] = None,
    threads: Annotated[str, typer.Option("--threads", help="Thread counts, separated by commas.")] = "1,2",
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for each contender.")] = 3.0,
    target: Annotated[
        str, typer.Option("--target", "-t", help="CPU to compile for; it must run here.")
    ] = "x86",
    table: Annotated[
        str, typer.Option("--table", help="What insert-qdq quantizes for; its table decides.")
    ] = "x86-vnni",
    trials: Annotated[int, typer.Option("--trials", min=0, help="Tuning trials for int8 and for float.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the table to this Markdown file.")
    ] = None,
) -> None:
    """Quantize, compile, time in turns, and print the table."""
    try:
        names = list(MODELS) if only is None else [name for name in known_models() if re.search(only, name)]
        if not names:
            raise ToolError(f"--only {only!r} matches no model; there are: {', '.join(known_models())}")
        counts = parse_threads(threads)
        rows = []
        for name in names:
            with progress(name):
                rows.append(measure_model(name, counts, seconds, target, table, trials))
            gc.collect()
    except (GraphwrightError, OSError, re.error) as error:
        print(f"int8-bench: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    text = markdown(rows, counts, trials)
    print_line(text)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")


def known_models() -> list[str]:
    """Names that `--only` chooses from."""
    from .runtimes.models import MODELS as full_size
    from .zoo import MODEL_NAMES, SMALL_NAMES

    return list(dict.fromkeys((*full_size, *MODEL_NAMES, *SMALL_NAMES)))


def build_model(name: str) -> ir.Model:
    """The graph of one of `known_models`."""
    from ..ir.trace import trace
    from .runtimes.models import MODELS as full_size
    from .zoo import zoo_model

    if name not in full_size:
        return zoo_model(name)
    module, example = full_size[name].build()
    return trace(module, example, name=name)


def measure_model(
    name: str, threads: Sequence[int], seconds: float, target: str, table: str, trials: int = 0
) -> Row:
    """Everything about one model.

    Raises:
        GraphwrightError: it cannot be quantized or compiled, or the target does not run here.
    """
    from ..backends.compile import compile as compile_graph
    from ..backends.onnxruntime import OnnxRuntimeExecutable
    from ..backends.target import resolve_target
    from ..ir.compare import compare
    from ..ir.inputs import random_inputs
    from ..ir.reference import run_reference
    from ..passes.optimize import optimize

    resolved = resolve_target(target)
    reason = resolved.why_not_here()
    if reason:
        raise ToolError(f"code for {resolved.name} cannot be timed here: {reason}")
    model = optimize(build_model(name), FLOAT).model
    quantized = quantize(model, table)
    ours = compile_graph(quantized, resolved, pipeline="eliminate-dead", trials=trials)
    floats = compile_graph(model, resolved, pipeline="eliminate-dead", trials=trials)
    small = compile_graph(optimize(model, WEIGHTS_INT4).model, resolved, pipeline="eliminate-dead")
    sizes = {INT8: artifact_size(ours), INT4: artifact_size(small), FLOAT_TVM: artifact_size(floats)}
    del small
    contenders: dict[str, Executable] = {
        INT8: ours,
        FLOAT_TVM: floats,
        ORT: OnnxRuntimeExecutable(quantized),
        ORT_FLOAT: OnnxRuntimeExecutable(model),
    }
    feeds = random_inputs(model, seed=1)
    agreement = compare(run_reference(quantized, feeds), ours.run(feeds))
    row = Row(name, agreement.sqnr_db, sizes, _integer_calls(ours))
    for count in threads:
        found = measure_interleaved(contenders, feeds, threads=count, seconds=seconds)
        row.timings.update({(contender, count): timing for contender, timing in found.items()})
    return row


def quantize(model: ir.Model, table: str) -> ir.Model:
    """The model with quantizers where the table puts them, calibrated on random data."""
    from ..passes.optimize import optimize
    from .feeds import calibration_feeds

    data = calibration_feeds(model, None, _CALIBRATION_SAMPLES, 0)
    return optimize(model, f"insert-qdq{{target={table}}}", calibration=data).model


def artifact_size(executable: Executable) -> int:
    """Bytes of library and weights as they are saved."""
    import tempfile

    from ..backends.artifact import LIBRARY, WEIGHTS

    with tempfile.TemporaryDirectory() as folder:
        saved = executable.save(Path(folder) / "artifact")
        return sum((saved / part).stat().st_size for part in (LIBRARY, WEIGHTS))


def _integer_calls(executable: Executable) -> tuple[int, int]:
    kernels = executable.report.kernels if executable.report is not None else ()
    integer = sum(each["calls"] for each in kernels if each["kind"].startswith("integer"))
    return integer, sum(each["calls"] for each in kernels if each["kind"] in ("conv", "gemm", "matmul"))


def markdown(rows: Sequence[Row], threads: Sequence[int], trials: int = 0) -> str:
    """The table, the geometric means, and what it was measured on."""
    columns = ["model", "threads", "int8 ms", "float ms", "ORT int8 ms", "ORT float ms"]
    columns += [
        "float / int8",
        "ORT int8 / int8",
        "size int8",
        "size int4",
        "SQNR to the reference",
        "kernels",
    ]
    cells = []
    for row in rows:
        for count in threads:
            timings = [timing_text(row.timings[each, count]) for each in (INT8, FLOAT_TVM, ORT, ORT_FLOAT)]
            cells.append(
                [
                    row.name,
                    str(count),
                    *timings,
                    f"{row.ratio(FLOAT_TVM, count):.2f}",
                    f"{row.ratio(ORT, count):.2f}",
                    f"{row.share(INT8):.1%}",
                    f"{row.share(INT4):.1%}",
                    f"{row.sqnr:.1f} dB",
                    f"{row.integer[0]} integer, {row.integer[1]} float",
                ]
            )
    facts = machine()
    means = [
        f"Geometric mean of ONNX Runtime int8 over ours, {count} thread{'s' if count > 1 else ''}: "
        f"{math.exp(sum(math.log(row.ratio(ORT, count)) for row in rows) / len(rows)):.2f}"
        for count in threads
    ]
    header = (
        f"{facts['cpu']}, {facts['cores']} cores; TVM {facts['apache-tvm']}, ONNX Runtime "
        f"{facts['onnxruntime']}; medians (10th-90th percentile), {trials or 'zero'} tuning trials, in "
        "turns; sizes of library and weights beside those of float.\n"
    )
    return "\n".join([header, markdown_table(columns, cells), "", *means])


if __name__ == "__main__":
    typer.run(main)
