"""bfloat16 and 8-bit floats: float32 numbers that were rounded to what the narrow type holds.

TVM 0.27 has no vectors of either. `narrow::Round(x)` rounds float32 to the nearest number of the type named
by its attribute `to`, ties to even; conversions become it, all other operators compute in float32 and are
followed by it where they round. Constants keep their type until the model is compiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.errors import CompileError
from ...ir.static import static_shape
from ...passes.rewriter import Rewriter
from .op import Op

DOMAIN = "narrow"
ROUND = f"{DOMAIN}::Round"


@dataclass(frozen=True)
class Narrow:
    """A type in terms of float32.

    Attributes:
        dropped: low bits of the mantissa that it lacks.
        largest: larger magnitudes become this one; None where they become infinity.
        step: distance of its denormal numbers, None where float32 has the same exponents.
        normal: its smallest normal number.
    """

    dropped: int
    largest: float | None = None
    step: float | None = None
    normal: float = 0.0


NARROW = {
    ir.DataType.BFLOAT16: Narrow(16),
    ir.DataType.FLOAT8E4M3FN: Narrow(20, 448.0, 2.0**-9, 2.0**-6),
    ir.DataType.FLOAT8E5M2: Narrow(21, 57344.0, 2.0**-16, 2.0**-14),
}
# Results are among the numbers that come in: nothing is to be rounded.
_EXACT = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather"),
        *("Concat", "Expand", "Tile", "Pad", "Where", "Max", "Min", "Relu", "Neg", "Abs", "MaxPool", "Clip"),
        *("DepthToSpace", "SpaceToDepth", "GatherElements", "GatherND", "Dropout", "GlobalMaxPool"),
    }
)


def round_narrow(op: Op, x: Any) -> Any:
    """The nearest number of the type named by attribute `to`, as a float32 expression; NaN stays NaN."""
    from tvm import tirx

    kind = NARROW[ir.DataType[op.attr("to")]]

    def number(value: float) -> Any:
        return tirx.const(value, "float32")

    limited = x
    if kind.largest is not None:
        limited = tirx.min(tirx.max(x, number(-kind.largest)), number(kind.largest))
    bits = tirx.reinterpret("int32", limited)
    odd = tirx.bitwise_and(tirx.shift_right(bits, tirx.const(kind.dropped, "int32")), tirx.const(1, "int32"))
    raised = bits + odd + tirx.const((1 << (kind.dropped - 1)) - 1, "int32")
    kept = tirx.bitwise_and(raised, tirx.const(-(1 << kind.dropped), "int32"))
    rounded = tirx.reinterpret("float32", kept)
    if kind.step is not None:
        small = tirx.nearbyint(limited * number(1.0 / kind.step)) * number(kind.step)
        rounded = tirx.Select(tirx.abs(limited) < number(kind.normal), small, rounded)
    # By its bits: a number that differs from itself is simplified away.
    magnitude = tirx.bitwise_and(tirx.reinterpret("int32", x), tirx.const(0x7FFFFFFF, "int32"))
    return tirx.Select(magnitude > tirx.const(0x7F800000, "int32"), x, rounded)


def widen_narrow_floats(model: ir.Model) -> None:
    """Let a model compute in float32 what it has in narrow types, in place.

    Raises:
        CompileError: an input or output of the model is of a narrow type, or a conversion does not saturate.
    """
    graph = model.graph
    made = [value for node in graph for value in node.outputs]
    if not any(value.dtype in NARROW for value in (*made, *graph.inputs)):
        return
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            if value.dtype in NARROW:
                raise CompileError(
                    f"{kind} '{value.name}' is {value.dtype.name}, which the TVM backend cannot pass; trace "
                    "module.float(), which convert-float{to=bfloat16 io=float32} makes narrow inside"
                )
    known = {value for value in graph.initializers.values() if value not in set(graph.inputs)}
    rewriter = Rewriter(model, origin="lowering")
    for node in list(graph):
        if all(value is None or value in known for value in node.inputs) and node.inputs:
            known.update(node.outputs)
            continue
        _widen(node, known, rewriter)


def _widen(node: ir.Node, known: set[ir.Value], rewriter: Rewriter) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None and value in known and value.dtype in NARROW:
            rewriter.set_input(node, index, _cast(node, value, rewriter))
    narrow = [value for value in node.outputs if value.dtype in NARROW]
    if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0] not in known:
        if node.inputs[0].dtype == ir.DataType.FLOAT:
            rewriter.replace(node, [_scaled(node, "Mul", rewriter)])
        return
    if not narrow:
        return
    if node.op_type == "QuantizeLinear":
        rewriter.replace(node, [_rounded(node, _scaled(node, "Div", rewriter), narrow[0], rewriter)])
    elif node.op_type == "Cast":
        source = node.inputs[0]
        assert source is not None
        if not node.attributes.get_int("saturate", 1) and NARROW[_type(narrow[0])].largest is not None:
            raise CompileError(f"node '{node.name}' (Cast): saturate=0 is not supported by the TVM backend")
        wide = source if source.dtype == ir.DataType.FLOAT else _cast(node, source, rewriter)
        rewriter.replace(node, [_rounded(node, wide, narrow[0], rewriter)])
    else:
        for value in narrow:
            _round_behind(node, value, rewriter)


def _type(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype


def _cast(node: ir.Node, value: ir.Value, rewriter: Rewriter) -> ir.Value:
    (wide,) = rewriter.insert_before(node, "Cast", [value], {"to": int(ir.DataType.FLOAT)})
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    return wide


def _rounded(node: ir.Node, value: ir.Value, like: ir.Value, rewriter: Rewriter) -> ir.Value:
    (made,) = rewriter.insert_before(node, "Round", [value], {"to": _type(like).name}, domain=DOMAIN)
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), like.shape
    return made


def _round_behind(node: ir.Node, value: ir.Value, rewriter: Rewriter) -> None:
    name = _type(value).name
    value.type = ir.TensorType(ir.DataType.FLOAT)
    if node.op_type in _EXACT or not value.uses():
        return
    (made,) = rewriter.insert_after(node, "Round", [value], {"to": name}, domain=DOMAIN)
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    rewriter.replace_uses(value, made)
    rewriter.set_input(made.producer(), 0, value)  # type: ignore[arg-type]


def _scaled(node: ir.Node, op_type: str, rewriter: Rewriter) -> ir.Value:
    """The first operand of a QuantizeLinear or DequantizeLinear, divided by or times its scale."""
    value, scale = node.inputs[0], node.inputs[1]
    array, shape = constant_array(scale), static_shape(node.outputs[0])
    if value is None or scale is None or node.attributes.get_int("block_size", 0) != 0:
        raise CompileError(f"node '{node.name}' ({node.op_type}): blocks of 8-bit floats are not supported")
    if array is not None and array.size > 1 and shape is not None:
        axis = node.attributes.get_int("axis", 1) % len(shape)
        wide = array.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        scale = rewriter.initializer(f"{node.name}/scale", np.ascontiguousarray(wide))
    (made,) = rewriter.insert_before(node, op_type, [value, scale])
    made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), node.outputs[0].shape
    return made
