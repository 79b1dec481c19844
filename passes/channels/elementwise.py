"""Labels through operators that work element by element, with broadcasting."""

from __future__ import annotations

import onnx_ir as ir

from ...ir.constants import constant_tensor
from .labels import Axis
from .tracer import Edit, Tracer, traces

# fmt: off
UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Clip",
    "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf",
    "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink",
    "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu",
)
# fmt: on
# fmt: off
BROADCASTING = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "CastLike", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub",
    "Sum", "Where", "Xor",
)
# fmt: on


@traces(*UNARY)
def _unary(node: ir.Node, tracer: Tracer) -> str | None:
    # Further inputs (bounds of Clip) are scalars.
    value = node.inputs[0]
    if value is None:
        return "its first input is missing"
    tracer.set(node.outputs[0], tracer.all_axes(value))
    return None


@traces("Dropout")
def _dropout(node: ir.Node, tracer: Tracer) -> str | None:
    value = node.inputs[0]
    if value is None:
        return "its first input is missing"
    for output in node.outputs:
        if output.name != "":
            tracer.set(output, tracer.all_axes(value))
    return None


@traces(*BROADCASTING)
def _broadcasting(node: ir.Node, tracer: Tracer) -> str | None:
    # CastLike reads the type of its second input, not its shape.
    operands = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
    values = [value for value in operands if value is not None]
    tracer.set(node.outputs[0], broadcast(values, tracer, len(tracer.dims(node.outputs[0]))))
    return None


def broadcast(values: list[ir.Value], tracer: Tracer, rank: int, skip: int = 0) -> list[Axis]:
    """Tie the axes that broadcasting lines up; returns the labels of the result.

    Args:
        values: Operands, aligned at their last axis.
        tracer: The labels.
        rank: Rank of the result.
        skip: Number of trailing axes to leave out, of the operands and the result.
    """
    # Activations lead, so that constants adopt their labels.
    values = sorted(values, key=lambda value: constant_tensor(value) is not None)
    result: list[Axis] = []
    for position in range(rank - skip):
        lead: Axis | None = None
        for value in values:
            dims = tracer.dims(value)
            index = position - (rank - len(dims))
            if index < 0 or dims[index] == 1:
                continue
            if lead is None:
                lead = tracer.axis(value, index)
            else:
                tracer.tie(lead, value, index)
        result.append(tracer.unit if lead is None else lead)
    return result


@traces("QuantizeLinear", "DequantizeLinear")
def _quantize(node: ir.Node, tracer: Tracer) -> str | None:
    value = node.inputs[0]
    if value is None:
        return "its first input is missing"
    if node.attributes.get_int("block_size", 0):
        return _blocked(node, value, tracer)
    dims = tracer.dims(value)
    for parameter in node.inputs[1:]:
        if parameter is not None and len(tracer.dims(parameter)) > 1:
            return "its scale is not per tensor or per axis"
    axis = node.attributes.get_int("axis", 1)
    for parameter in node.inputs[1:]:
        if parameter is not None and len(tracer.dims(parameter)) == 1 and tracer.dims(parameter)[0] != 1:
            tracer.tie(tracer.axis(value, axis % len(dims)), parameter, 0)
    tracer.set(node.outputs[0], tracer.all_axes(value))
    return None


def _blocked(node: ir.Node, value: ir.Value, tracer: Tracer) -> str | None:
    """Along other axes than that of the blocks every index has scales of its own."""
    dims = tracer.dims(value)
    blocked = node.attributes.get_int("axis", 1) % len(dims)
    parameters = [parameter for parameter in node.inputs[1:] if parameter is not None]
    if any(len(tracer.dims(parameter)) != len(dims) for parameter in parameters):
        return "its scales have another rank than it"
    for axis in range(len(dims)):
        for parameter in parameters:
            if axis != blocked and tracer.dims(parameter)[axis] != 1:
                tracer.tie(tracer.axis(value, axis), parameter, axis)
    if tracer.dims(parameters[0])[blocked] != 1:
        tracer.keep(value, blocked, node, "blocked quantization ties neighbouring indices")
    elif isinstance(size := dims[blocked], int):
        # One block is all there is: it gets as long as what is left.
        labels, length = tracer.axis(value, blocked), size
        tracer.on_removal(lambda keep: [Edit(node, "block_size", keep.count(labels, length))])
    tracer.set(node.outputs[0], tracer.all_axes(value))
    return None
