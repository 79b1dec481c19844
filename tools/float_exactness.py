"""How far products of float32 are off, by target: `python -m graphwright.tools.float_exactness [-o FILE.md]`.

A product of random matrices is compiled for every target, without a check that would choose another one, and
compared with numpy in float64. "random" are normal numbers of both signs, whose sums stay small beside what
is added; "positive" are uniform between 0 and 1. Errors are relative to the root mean square of the result.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import onnx_ir as ir
import typer

from ..ir.errors import GraphwrightError, ToolError
from .console import print_line, progress
from .steps import markdown_table

if TYPE_CHECKING:
    from ..backends.target import Target

ROWS, COLUMNS = 128, 256
LENGTHS = (64, 256, 1024, 4096)
"""How many products are summed."""
RIVAL = "ONNX Runtime"
_EVERY = "every"


@dataclass(frozen=True)
class Error:
    """Errors of one product, relative to the root mean square of the exact result.

    Attributes:
        by: target or rival.
        kernel: what multiplied.
        values: "random" or "positive".
        length: products per sum.
        mean: root mean square of the errors.
        worst: the largest error.
    """

    by: str
    kernel: str
    values: str
    length: int
    mean: float
    worst: float


def measure(targets: Mapping[str, Target | None], lengths: Sequence[int]) -> Iterator[Error]:
    """Errors by value distribution, length and target; None stands for ONNX Runtime.

    Raises:
        CompileError: a product cannot be compiled.
    """
    for values in ("random", "positive"):
        for length in lengths:
            left, right = _matrices(values, length)
            exact = left.astype(np.float64) @ right.astype(np.float64)
            for name, target in targets.items():
                found, kernel = _product(left, right, target)
                scale = np.sqrt(np.mean(exact**2))
                off = np.abs(found - exact) / scale
                yield Error(name, kernel, values, length, float(np.sqrt(np.mean(off**2))), float(off.max()))


def markdown(errors: Sequence[Error]) -> str:
    """The errors as a table."""
    head = ["values", "products per sum", "by", "kernel", "mean error", "largest error"]
    rows = [
        [each.values, str(each.length), each.by, each.kernel, f"{each.mean:.1e}", f"{each.worst:.1e}"]
        for each in errors
    ]
    return markdown_table(head, rows)


def ways() -> dict[str, Target | None]:
    """The ways of this machine to multiply float32, and ONNX Runtime's."""
    from ..backends.features import FLOAT_PARTS, with_features
    from ..backends.float_products import SPLIT_FEATURE
    from ..backends.target import host_target

    host = host_target()
    found: dict[str, Target | None] = {}
    if host.has(SPLIT_FEATURE):
        found |= {name: with_features(host, [f"+{name}"]) for name in FLOAT_PARTS}
        host = with_features(host, [f"-{SPLIT_FEATURE}"])
    return {**found, "vectors": host, RIVAL: None}


def _matrices(values: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(length)
    draw = generator.standard_normal if values == "random" else generator.random
    return draw((ROWS, length), dtype=np.float32), draw((length, COLUMNS), dtype=np.float32)


def _product(left: np.ndarray, right: np.ndarray, target: Target | None) -> tuple[np.ndarray, str]:
    """The product by constant weights, and the kernel that made it."""
    from ..backends.compile import compile as compile_graph
    from ..backends.onnxruntime import OnnxRuntimeExecutable

    model = _model(left, right)
    if target is None:
        return OnnxRuntimeExecutable(model).run({"x": left})["y"], "its own"
    executable = compile_graph(model, target, check=False, database=False)
    assert executable.report is not None
    notes = [kernel["note"] for kernel in executable.report.kernels if kernel["flops"]]
    return executable.run({"x": left})["y"], ", ".join(notes)


def _model(left: np.ndarray, right: np.ndarray) -> ir.Model:
    x = ir.Value(name="x", shape=ir.Shape(left.shape), type=ir.TensorType(ir.DataType.FLOAT))
    weight = ir.tensor(right, name="w")
    w = ir.Value(name="w", shape=ir.Shape(right.shape), type=ir.TensorType(weight.dtype), const_value=weight)
    node = ir.node("MatMul", [x, w])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    node.outputs[0].shape = ir.Shape((left.shape[0], right.shape[1]))
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 23}, name="product"
    )
    return ir.Model(graph, ir_version=10)


def main(
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="CPUs to compile for, separated by commas; they must run here. `every`: all ways of this "
            "machine, and ONNX Runtime.",
        ),
    ] = _EVERY,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also write the table to this Markdown file.")
    ] = None,
) -> None:
    """Compare products of float32 with float64."""
    try:
        targets = ways() if target == _EVERY else {name: _runnable(name) for name in _names(target)}
        with progress("products of float32"):
            errors = list(measure(targets, LENGTHS))
        text = markdown(errors)
        print_line(text)
        if output is not None:
            output.write_text(text + "\n", encoding="utf-8")
    except (GraphwrightError, OSError) as error:
        print(f"float-exactness: error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None


def _names(text: str) -> list[str]:
    from ..backends.features import split_targets

    return split_targets(text)


def _runnable(name: str) -> Target:
    from ..backends.target import resolve_target

    resolved = resolve_target(name)
    if reason := resolved.why_not_here():
        raise ToolError(f"code for {resolved.name} cannot be run here: {reason}")
    return resolved


if __name__ == "__main__":
    typer.run(main)
