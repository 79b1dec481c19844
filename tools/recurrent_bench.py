"""One step of LSTM, GRU or RNN on TVM with weights of few bits: time, artifact size and SQNR beside floats.

    python -m graphwright.tools.recurrent_bench [--cell LSTM] [--hidden 256,512,1024] [--forms int8,int4]
        [--threads 1,2] [--batch 1] [--target host]

Layers have 64 inputs, 64 steps and random weights; a step's share of the product with the inputs is in its
time. Runs of all forms take turns; times are medians with 10th and 90th percentile.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import onnx_ir as ir
import typer

from ..ir.compare import compare
from ..ir.errors import GraphwrightError, ToolError
from .console import print_line
from .steps import markdown_table

if TYPE_CHECKING:
    from ..backends.executable import Executable

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, INPUTS = 64, 64
COLUMNS = ("cell", "hidden", "threads", "weights", "us per step", "float / this", "artifact", "SQNR")


@dataclass(frozen=True)
class Row:
    """One layer with weights of one form.

    Attributes:
        cell, hidden, threads, form: which; form is "float" for the layer as it was.
        microseconds: of a step: 10th percentile, median and 90th.
        speedup: median of floats over this one.
        share: bytes of library and weights over those of floats.
        sqnr: of the outputs, against the float layer on TVM, dB.
    """

    cell: str
    hidden: int
    threads: int
    form: str
    microseconds: tuple[float, float, float]
    speedup: float
    share: float
    sqnr: float

    def cells(self) -> list[str]:
        """As the table shows it."""
        low, median, high = self.microseconds
        sqnr = "-" if self.form == "float" else f"{self.sqnr:.1f} dB"
        figures = [f"{median:.2f} ({low:.2f}-{high:.2f})", f"{self.speedup:.2f}", f"{self.share:.1%}", sqnr]
        return [self.cell, str(self.hidden), str(self.threads), self.form, *figures]


def build_layer(cell: str, hidden: int, batch: int) -> ir.Model:
    """The float layer, x `[STEPS, batch, INPUTS]` -> y `[STEPS, 1, batch, hidden]`."""
    random, gates = np.random.default_rng(0), GATES[cell]

    def constant(name: str, *shape: int) -> ir.Value:
        array = (random.standard_normal(shape) / np.sqrt(hidden)).astype(np.float32)
        return ir.val(name, const_value=ir.tensor(array, name=name))

    x = ir.val("x", shape=(STEPS, batch, INPUTS), dtype=ir.DataType.FLOAT)
    shapes = {
        "w": (1, gates * hidden, INPUTS),
        "r": (1, gates * hidden, hidden),
        "b": (1, 2 * gates * hidden),
    }
    weights = [constant(name, *shape) for name, shape in shapes.items()]
    node = ir.node(cell, [x, *weights], attributes={"hidden_size": hidden}, name=cell.lower())
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = ir.Shape((STEPS, 1, batch, hidden))
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=weights, opset_imports={"": 22}, name=cell)
    return ir.Model(graph, ir_version=10)


def measure(
    cell: str,
    hidden: int,
    forms: Sequence[str],
    threads: Sequence[int],
    batch: int,
    target: str,
    repeats: int,
) -> Iterator[Row]:
    """The rows of one layer, floats first."""
    from ..backends.compile import compile
    from ..passes.optimize import optimize

    floats = build_layer(cell, hidden, batch)
    models = {"float": floats}
    models |= {form: optimize(floats, f"quantize-weights{{form={form}}}").model for form in forms}
    executables = {form: compile(model, target, pipeline="eliminate-dead") for form, model in models.items()}
    sizes = {form: _stored_bytes(executable) for form, executable in executables.items()}
    feeds = {"x": np.random.default_rng(1).standard_normal((STEPS, batch, INPUTS)).astype(np.float32)}
    for count in threads:
        outputs = {}
        for form, executable in executables.items():
            executable.set_threads(count)
            outputs[form] = executable.run(feeds)["y"]
        times = _in_turns(executables, feeds, repeats)
        for form in executables:
            low, median, high = (float(each) for each in np.percentile(times[form], (10, 50, 90)))
            yield Row(
                cell,
                hidden,
                count,
                form,
                (low, median, high),
                float(np.median(times["float"])) / median,
                sizes[form] / sizes["float"],
                compare(outputs["float"], outputs[form]).sqnr_db,
            )


def _in_turns(
    executables: Mapping[str, Executable], feeds: Mapping[str, np.ndarray], repeats: int
) -> dict[str, list[float]]:
    """Microseconds of a step, by form."""
    times: dict[str, list[float]] = {form: [] for form in executables}
    for _ in range(repeats):
        for form, executable in executables.items():
            # The first run finds caches full of the others' weights.
            executable.run(feeds)
            start = time.perf_counter()
            executable.run(feeds)
            times[form].append((time.perf_counter() - start) * 1e6 / STEPS)
    return times


def _stored_bytes(executable: Executable) -> int:
    with tempfile.TemporaryDirectory() as folder:
        saved = executable.save(Path(folder) / "artifact")
        return sum((saved / name).stat().st_size for name in ("model.so", "weights.bin"))


def main(
    cell: Annotated[str, typer.Option(help="LSTM, GRU or RNN.")] = "LSTM",
    hidden: Annotated[str, typer.Option(help="Sizes of the state.")] = "256,512,1024",
    forms: Annotated[str, typer.Option(help="Forms of quantize-weights, with options.")] = "int8,int4",
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    batch: Annotated[int, typer.Option(help="Sequences at a time.")] = 1,
    target: Annotated[str, typer.Option(help="What to compile for; must run here.")] = "host",
    repeats: Annotated[int, typer.Option(help="Runs of every form.")] = 30,
) -> None:
    """Print the table."""
    try:
        if cell not in GATES:
            raise ToolError(f"--cell {cell}: there are {', '.join(GATES)}")
        sizes, counts = _numbers("--hidden", hidden), _numbers("--threads", threads)
        if batch < 1 or repeats < 1:
            raise ToolError("--batch and --repeats must be at least 1")
        rows = [
            row.cells()
            for size in sizes
            for row in measure(cell, size, forms.split(","), counts, batch, target, repeats)
        ]
    except GraphwrightError as error:
        print(f"recurrent-bench: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    print_line(markdown_table(COLUMNS, rows, left=4))


def _numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ToolError(f"{option} {text}: give numbers of at least 1, separated by commas")
    return [int(part) for part in parts]


if __name__ == "__main__":
    typer.run(main)
