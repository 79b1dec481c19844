"""Is what was compiled still the model? One run against the reference, judged by a stated bound.

Floating-point graphs only differ by the order of additions, so the bound is on the largest error relative to
the largest output. In a graph with quantizers a difference in the last bit can move a value by a whole step,
which then travels on; there the bound is on the signal-to-noise ratio, and both figures are reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from ..ir.compare import Comparison, compare
from ..ir.errors import CompileError, ModelError
from ..ir.reference import Reference
from .check import Check

MAX_RELATIVE_ERROR = 1e-4
"""Bound for single and double precision."""

_HALF_RELATIVE_ERROR = {ir.DataType.FLOAT16: 1e-2, ir.DataType.BFLOAT16: 5e-2}
"""About ten units in the last place, since intermediate rounding differs."""

MIN_QUANTIZED_SQNR_DB = 30.0
"""Bound for graphs with quantizers. A step of int8 on every output value is about 38 dB below full scale, a
wrong scale or zero point leaves less than 20."""

_QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear"}


Run = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def check_against_reference(
    model: ir.Model, run: Run, feeds: Mapping[str, np.ndarray], *, where: str = "here"
) -> Check:
    """Run once on both and compare.

    Args:
        model: the graph that was compiled.
        run: runs the compiled model.
        feeds: inputs by name.
        where: recorded in the result.

    Raises:
        CompileError: an output is off; the line names it with its figures.
    """
    expected = Reference(model).run(feeds)
    actual = dict(run(feeds))
    quantized = any(node.op_type in _QUANTIZERS for node in model.graph.all_nodes())
    relative = _relative_bound(model)
    try:
        found = compare(expected, actual)
    except ModelError as error:
        raise CompileError(f"the compiled model disagrees with the reference: {error}") from None
    for name, figures in found.outputs.items():
        exact = expected[name].dtype.kind in "biu" and not quantized
        if exact and not figures.equal:
            raise CompileError(_off(name, figures, "equality, since it holds integers"))
        if quantized and not figures.sqnr_db >= MIN_QUANTIZED_SQNR_DB:
            raise CompileError(_off(name, figures, f"SQNR >= {MIN_QUANTIZED_SQNR_DB:g} dB"))
        if not quantized and not figures.max_rel <= relative:
            raise CompileError(_off(name, figures, f"relative error <= {relative:g}"))
    bound = f"SQNR >= {MIN_QUANTIZED_SQNR_DB:g} dB" if quantized else f"relative error <= {relative:g}"
    notes = [
        f"output '{name}' is all {'zeros' if not np.any(array) else 'one value'} here, which proves little"
        for name, array in expected.items()
        if array.size > 1 and np.all(array == array.flat[0])
    ]
    return Check(True, where, "", bound, found, tuple(notes))


def _relative_bound(model: ir.Model) -> float:
    used = {value.dtype for node in model.graph.all_nodes() for value in node.outputs}
    return max(
        [MAX_RELATIVE_ERROR, *(bound for dtype, bound in _HALF_RELATIVE_ERROR.items() if dtype in used)]
    )


def _off(name: str, figures: Comparison, bound: str) -> str:
    measured = f"max relative error {figures.max_rel:.3g}, max absolute error {figures.max_abs:.3g}"
    sqnr = "inf" if math.isinf(figures.sqnr_db) else f"{figures.sqnr_db:.1f}"
    return (
        f"the compiled model computes something else: output '{name}' has {measured}, SQNR {sqnr} dB; "
        f"required is {bound}"
    )
