"""Is what was compiled still the model? One run against the reference, judged by a stated bound.

Floating-point graphs only differ by the order of additions, so the bound is on the largest error relative to
the largest output. In a graph with quantizers a difference in the last bit can move a value by a whole step,
which travels on and makes others flip. So where the first bound is missed there, the signal-to-noise ratio is
judged instead: it must be 30 dB, or be near what the reference itself shows when its inputs move in the fifth
digit or its additions are reordered.
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
"""Good enough for any graph with quantizers: a step of int8 on every output value is about 38 dB below full
scale, a wrong scale or zero point leaves less than 20."""

ROUNDING_MARGIN_DB = 6.0
"""How much noisier than the reference's own rounding noise a compiled graph with quantizers may be."""

LOWEST_SQNR_DB = 10.0
"""Below this nothing is recognized any more, however much the graph amplifies rounding."""

_MOVE = 1e-5
"""Relative movement of the inputs, about what rounding adds up to in a deep network."""

_MOVES = 3
_QUANTIZERS = {"QuantizeLinear", "DynamicQuantizeLinear", "Round"}


class Disagreement(CompileError):
    """A compiled model computes something else than the reference.

    Attributes:
        error: the largest relative error.
    """

    def __init__(self, message: str, error: float = math.inf):
        super().__init__(message)
        self.error = error


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
        Disagreement: an output is off; the line names it with its figures.
        CompileError: the outputs are others.
    """
    reference = Reference(model)
    expected = reference.run(feeds)
    try:
        found = compare(expected, dict(run(feeds)))
    except ModelError as error:
        raise CompileError(f"the compiled model disagrees with the reference: {error}") from None
    quantized = any(map(_is_quantizer, model.graph.all_nodes()))
    strict = _relative_bound(model)
    bound = f"relative error <= {strict:g}"
    missed = [name for name, figures in found.outputs.items() if not _within(figures, expected[name], strict)]
    notes = _proves_little(expected)
    if missed and not quantized:
        exact = expected[missed[0]].dtype.kind in "biu"
        required = "equality, since it holds integers" if exact else bound
        raise Disagreement(_off(missed[0], found.outputs[missed[0]], required), found.max_rel)
    if missed:
        required_db = MIN_QUANTIZED_SQNR_DB
        if min(found.outputs[name].sqnr_db for name in missed) < required_db:
            noise = rounding_noise(model, reference, feeds, expected)
            required_db = min(required_db, max(noise - ROUNDING_MARGIN_DB, LOWEST_SQNR_DB))
            notes.append(f"rounding alone leaves {noise:.1f} dB in the reference of this quantized graph")
        bound = f"SQNR >= {required_db:.1f} dB"
        for name in missed:
            if not found.outputs[name].sqnr_db >= required_db:
                raise Disagreement(_off(name, found.outputs[name], bound), found.max_rel)
    return Check(True, where, "", bound, found, tuple(notes))


def rounding_noise(
    model: ir.Model,
    reference: Reference,
    feeds: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
) -> float:
    """The lowest SQNR (dB) that rounding differences alone cause in the reference of a quantized graph.

    Inputs are moved by a hundred-thousandth, and the same graph is run with additions in another order (by
    ONNX Runtime's optimizer).
    """
    from .onnxruntime import OnnxRuntimeExecutable

    noise = [compare(expected, OnnxRuntimeExecutable(model).run(feeds)).sqnr_db]
    for seed in range(_MOVES):
        generator = np.random.default_rng(seed)
        moved = {
            name: (array * (1 + _MOVE * generator.standard_normal(array.shape))).astype(array.dtype)
            if array.dtype.kind == "f"
            else array
            for name, array in feeds.items()
        }
        noise.append(compare(expected, reference.run(moved)).sqnr_db)
    return min(noise)


def _is_quantizer(node: ir.Node) -> bool:
    """Whether what a node gives lies on a coarse grid: integers, or floats of 8 bits."""
    return node.op_type in _QUANTIZERS or any(
        value.dtype is not None and value.dtype.name.startswith("FLOAT8") for value in node.outputs
    )


def _within(figures: Comparison, expected: np.ndarray, bound: float) -> bool:
    return figures.equal if expected.dtype.kind in "biu" else figures.max_rel <= bound


def _proves_little(expected: Mapping[str, np.ndarray]) -> list[str]:
    seen = {name: _only_value(array) for name, array in expected.items() if array.size > 1}
    return [f"output '{name}' is all {what} here, which proves little" for name, what in seen.items() if what]


def _only_value(array: np.ndarray) -> str:
    """What all elements are, in words; "" where they differ."""
    if array.dtype.kind == "f" and np.isnan(array).all():
        return "NaN"
    if not np.all(array == array.flat[0]):
        return ""
    return "one value" if np.any(array) else "zeros"


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
