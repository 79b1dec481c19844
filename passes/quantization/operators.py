"""What placement must know about single operators: where weights stand, which nodes take no integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array, constant_tensor
from ...ir.static import static_shape
from ..fold_constants import STORAGE_KEY
from .arithmetic import array_problem
from .tables import Table, Weighted

DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class WeightedNode:
    """A node with constant weights that a table quantizes.

    Attributes:
        node: the operator.
        kind: its entry in the table.
        weight: the constant float weights.
        axis: output channel axis of the weights.
        weight_channels: size of that axis.
        weight_factor: what the weights are multiplied with (alpha of Gemm).
        bias_node: the node that reads the bias (the operator itself, or the Add behind a MatMul), if there is
            one.
        bias_index: input of `bias_node` that is the bias.
        bias: the bias, or None.
        bias_factor: what the bias is multiplied with (beta of Gemm).
        tail: nodes fused behind the operator, in order.
        result: the value behind the tail.
    """

    node: ir.Node
    kind: Weighted
    weight: ir.Value
    axis: int
    weight_channels: int
    weight_factor: float
    bias_node: ir.Node | None
    bias_index: int
    bias: ir.Value | None
    bias_factor: float
    tail: tuple[ir.Node, ...]
    result: ir.Value

    @property
    def data(self) -> ir.Value:
        """The activations that flow in."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def channels(self) -> int:
        """Number of output channels; grouped transposed convolutions share the axis of the weights."""
        groups = self.node.attributes.get_int("group", 1) if self.node.op_type == "ConvTranspose" else 1
        return self.weight_channels * groups

    @property
    def input_channels(self) -> int:
        """Number of input channels, over all groups."""
        shape = static_shape(self.weight)
        assert shape is not None
        if self.node.op_type == "Conv":
            return shape[1] * self.node.attributes.get_int("group", 1)
        if self.node.op_type == "ConvTranspose":
            return shape[0]
        return shape[1 - self.axis]

    def per_channel(self, scales: np.ndarray) -> np.ndarray:
        """Spreads scales of the weights' axis over all output channels, `[channels]`."""
        if scales.ndim == 0:
            return np.full(self.channels, scales)
        return np.tile(scales, self.channels // len(scales))

    def per_weight_channel(self, channels: np.ndarray) -> np.ndarray:
        """The largest magnitude over the output channels that share one weight scale, `[weight channels]`."""
        return np.abs(channels).reshape(-1, self.weight_channels).max(axis=0)

    def bias_array(self) -> np.ndarray | None:
        """The bias as float64 `[channels]`, factor applied, or None."""
        array = constant_array(self.bias)
        if array is None:
            return None
        return np.broadcast_to(array.astype(np.float64).reshape(-1) * self.bias_factor, (self.channels,))


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def is_restored(value: ir.Value | None) -> bool:
    """Whether a value is made of stored integers or narrow floats."""
    producer = None if value is None else value.producer()
    if producer is None:
        return False
    return producer.op_type == "DequantizeLinear" or STORAGE_KEY in producer.metadata_props


def is_activation_product(node: ir.Node) -> bool:
    """Whether a node is a MatMul of two float32 activations."""
    operands = list(node.inputs[:2])
    return (
        node.op_type == "MatMul"
        and len(operands) == 2
        and all(is_float(each) and constant_tensor(each) is None for each in operands)
    )


def activation_product_problem(node: ir.Node) -> str | None:
    """Why a MatMul of two activations cannot run on integers, or None."""
    if any(is_restored(value) for value in node.inputs) or any(
        _stores(user) for user in node.outputs[0].consumers()
    ):
        return "it is already quantized"
    if any(value is None or value.shape is None or len(value.shape) < 2 for value in node.inputs):
        return "integer kernels want operands with a known rank of two or more"
    return None


def _stores(node: ir.Node) -> bool:
    """Whether a node is the first of a pair."""
    return node.op_type == "QuantizeLinear" or node.metadata_props.get(STORAGE_KEY) == "stores"


def has_bodies(node: ir.Node) -> bool:
    """Whether the node runs subgraphs."""
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in bodies for attribute in node.attributes.values())


def match_weighted(node: ir.Node, table: Table, kind: Weighted | None = None) -> WeightedNode | str:
    """Prepares a node of an operator in `table.weighted`, or says why it must stay in float.

    Args:
        node: the operator.
        table: what the target quantizes.
        kind: what is to hold for this node instead of the table's entry.
    """
    kind = kind or table.weighted[node.op_type]
    problem = _operand_problem(node)
    if problem is not None:
        return problem
    weight = node.inputs[1]
    array = constant_array(weight)
    assert weight is not None and array is not None
    axis = _weight_axis(node)
    bias_node, bias_index = _match_bias(node, table, kind)
    tail, result = _match_tail(node, bias_node, table)
    is_gemm = node.op_type == "Gemm"
    matched = WeightedNode(
        node=node,
        kind=kind,
        weight=weight,
        axis=axis,
        weight_channels=array.shape[axis],
        weight_factor=node.attributes.get_float("alpha", 1.0) if is_gemm else 1.0,
        bias_node=bias_node,
        bias_index=bias_index,
        bias=None if bias_node is None else bias_node.inputs[bias_index],
        bias_factor=node.attributes.get_float("beta", 1.0) if is_gemm else 1.0,
        tail=tail,
        result=result,
    )
    if bias_node is not None and kind.bias == "int32":
        return _bias_problem(matched) or matched
    return matched


def _operand_problem(node: ir.Node) -> str | None:
    if any(is_restored(value) for value in node.inputs):
        return "it is already quantized"
    if any(_stores(user) for output in node.outputs for user in output.consumers()):
        return "it is already quantized"
    data, weight = (*node.inputs, None, None)[:2]
    if constant_tensor(weight) is None:
        if constant_tensor(data) is not None:
            return "its first operand is the constant one, integer kernels want the weights second"
        if node.op_type == "MatMul" and weight is not None and weight.producer() is not None:
            return (
                "neither operand is a constant; fold-constants first if one could be, "
                "products=quantize takes both activations"
            )
        return "its weights are not constant"
    if not (is_float(data) and is_float(weight)):
        return f"it computes in {data.dtype if data is not None else None}, not in float32"
    if constant_tensor(data) is not None:
        return "all its operands are constant; fold-constants first"
    return _weight_problem(node, weight)


def _weight_problem(node: ir.Node, weight: ir.Value | None) -> str | None:
    array = constant_array(weight)
    assert array is not None
    if array.size == 0:
        return "its weights are empty"
    if node.op_type in ("MatMul", "Gemm") and array.ndim != 2:
        return f"its weights have {array.ndim} dimensions, integer kernels want a matrix"
    return array_problem(array, "its weights")


def _weight_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1


def _match_bias(node: ir.Node, table: Table, kind: Weighted) -> tuple[ir.Node | None, int]:
    """Finds the bias: the third input, or the constant of an Add behind a MatMul."""
    if node.op_type != "MatMul":
        has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        return (node, 2) if has_bias else (None, 0)
    found = constant_addend(node)
    if found is None:
        return None, 0
    add, index = found
    bias = constant_array(add.inputs[index])
    shape = node.outputs[0].shape
    rank = 1 if shape is None else len(shape)
    is_open = static_shape(node.outputs[0]) is None
    if rank > 2 and (is_open or (table.activations.dtype == "int8" and kind.result == "any")):
        # It is no Gemm to runtimes (see `signed.widen_bias` for int8): their integer kernel gives floats, to
        # which a float bias is added.
        return None, 0
    # Runtimes make a Gemm of the two, and an integer one only if the bias is integer as well.
    is_vector = bias is not None and bias.ndim <= rank and bias.size == (bias.shape or (1,))[-1]
    return (add, index) if is_vector else (None, 0)


def constant_addend(node: ir.Node) -> tuple[ir.Node, int] | None:
    """The Add that alone reads a product, and which of its inputs is the constant one."""
    product = node.outputs[0]
    add = _only_user(product, ("Add",))
    if add is None:
        return None
    index = 1 if add.inputs[0] is product else 0
    return (add, index) if constant_tensor(add.inputs[index]) is not None else None


def _bias_problem(matched: WeightedNode) -> str | None:
    bias = matched.bias
    if is_restored(bias):
        return "it is already quantized"
    array = constant_array(bias)
    if array is None:
        return "its bias is not constant"
    if array_problem(array, "its bias") is not None:
        return array_problem(array, "its bias")
    if array.size not in (1, matched.channels) or (array.ndim and array.shape[-1] != array.size):
        return f"its bias has shape {list(array.shape)}, not one number per channel"
    return None


def _match_tail(
    node: ir.Node, bias_node: ir.Node | None, table: Table
) -> tuple[tuple[ir.Node, ...], ir.Value]:
    """Follows what the kernel fuses behind itself: a bias in float, then one activation."""
    tail: list[ir.Node] = []
    value = node.outputs[0]
    if node.op_type == "MatMul":
        found = constant_addend(node)
        add = bias_node or (found[0] if found is not None else None)
        if add is not None:
            tail.append(add)
            value = add.outputs[0]
    activation, value = follow_activation(value, table)
    return (*tail, *activation), value


def follow_activation(value: ir.Value, table: Table) -> tuple[tuple[ir.Node, ...], ir.Value]:
    """The activation that is fused behind `value`, if any, and the value behind it."""
    activation = _only_user(value, table.tails)
    if activation is None or activation.inputs[0] is not value:
        return (), value
    if activation.op_type == "Clip" and clip_bounds(activation) is None:
        return (), value
    return (activation,), activation.outputs[0]


def clip_bounds(node: ir.Node) -> tuple[float, float] | None:
    """Constant bounds of a Relu or Clip, None where they are computed or exclude zero."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    bounds = [float("-inf"), float("inf")]
    for index, value in enumerate(node.inputs[1:3]):
        if value is None:
            continue
        array = constant_array(value)
        if array is None or array.size != 1:
            return None
        bounds[index] = float(array.reshape(()))
    return (bounds[0], bounds[1]) if bounds[0] <= 0.0 <= bounds[1] else None


def _only_user(value: ir.Value, op_types: tuple[str, ...]) -> ir.Node | None:
    """The node of one of `op_types` that alone reads `value`, in the same graph."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    (user,) = value.consumers()
    producer = value.producer()
    same_graph = producer is not None and user.graph is producer.graph
    known = user.op_type in op_types and user.domain in DEFAULT_DOMAINS
    return user if known and same_graph else None


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """The activations that a `computed` or `shared` operator reads."""
    if node.op_type in ("Add", "Mul", "Sub", "Div", "Concat", "Max", "Min"):
        return [value for value in node.inputs if value is not None]
    first = node.inputs[0] if node.inputs else None
    return [] if first is None else [first]


def follower_problem(node: ir.Node) -> str | None:
    """Why a `computed` or `shared` node cannot run on integers, or None."""
    inputs = data_inputs(node)
    if any(is_restored(value) for value in inputs):
        return "it is already quantized"
    if not all(is_float(value) for value in inputs):
        return "it does not compute in float32"
    if any(constant_tensor(value) is not None for value in inputs):
        return "one of its operands is a constant"
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].name:
        return "its indices are used"
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
        return "it interpolates"
    return None
