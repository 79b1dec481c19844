"""Old models whose operators still mean what they meant: told the new opset, a few nodes respelled.

Most new versions of an operator only take more element types, or get attributes whose defaults are the old
behaviour; some turn an attribute into an input. Converters treat such models like any others, through
protobuf and back. Here each node is looked at once; a model with anything else in it is left to them.

What changed when: https://onnx.ai/onnx/operators/ (the history of each operator).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from .bodies import all_graphs
from .old_operators import as_matrix
from .relabel import relabel, same_version
from .tensors import tensor_of

_OLDEST = 7
"""Opset 7 brought today's broadcasting."""

CHANGED_SINCE_18 = frozenset({"DFT", "GridSample", "GroupNormalization"})
"""Operators that mean something else in opset 18 or an earlier one than in the canonical one."""

SAME_SINCE = {
    "Abs": 6, "Acos": 7, "Add": 7, "And": 7, "ArgMax": 1, "ArgMin": 1, "Asin": 7, "Atan": 7,
    "AveragePool": 7, "BatchNormalization": 9, "Cast": 6, "Ceil": 6, "Clip": 11, "Concat": 4, "Constant": 1,
    "ConstantOfShape": 9, "Conv": 1, "ConvTranspose": 1, "Cos": 7, "CumSum": 11, "DepthToSpace": 1,
    "DequantizeLinear": 10, "Div": 7, "Dropout": 12, "Einsum": 12, "Elu": 6, "Equal": 7, "Erf": 9, "Exp": 6,
    "Expand": 8, "Flatten": 1, "Floor": 6, "GRU": 7, "Gather": 1, "GatherElements": 11, "GatherND": 11,
    "Gemm": 7, "GlobalAveragePool": 1, "GlobalMaxPool": 1, "Greater": 7, "GreaterOrEqual": 12,
    "HardSigmoid": 6, "HardSwish": 14, "Hardmax": 13, "Identity": 1, "If": 11, "InstanceNormalization": 6,
    "IsInf": 10, "IsNaN": 9, "LRN": 1, "LSTM": 7, "LeakyRelu": 6, "Less": 7, "LessOrEqual": 12, "Log": 6,
    "LogSoftmax": 13, "Loop": 11, "LpNormalization": 1, "MatMul": 1, "Max": 8, "MaxPool": 8, "Mean": 8,
    "Min": 8, "Mod": 10, "Mul": 7, "Neg": 6, "NonMaxSuppression": 10, "NonZero": 9, "Not": 1, "OneHot": 9,
    "Or": 7, "PRelu": 7, "Pad": 11, "Pow": 7, "QLinearMatMul": 10, "QuantizeLinear": 10, "RNN": 7,
    "Reciprocal": 6, "ReduceL1": 1, "ReduceL2": 1, "ReduceLogSum": 1, "ReduceLogSumExp": 1, "ReduceMax": 1,
    "ReduceMean": 1, "ReduceMin": 1, "ReduceProd": 1, "ReduceSum": 1, "ReduceSumSquare": 1, "Relu": 6,
    "Reshape": 5, "Resize": 13, "Scan": 9, "ScatterElements": 11, "ScatterND": 11, "Selu": 6, "Shape": 1,
    "Sigmoid": 6, "Sign": 9, "Sin": 7, "Size": 1, "Slice": 10, "Softmax": 13, "Softplus": 1, "Softsign": 1,
    "SpaceToDepth": 1, "Split": 13, "Sqrt": 6, "Squeeze": 1, "Sub": 7, "Sum": 8, "Tan": 7, "Tanh": 6,
    "Tile": 6, "TopK": 10, "Transpose": 1, "Unsqueeze": 1, "Where": 9, "Xor": 7,
}  # fmt: skip
"""Versions of operators since which nothing was changed but what is told by attributes that a node has."""

_AXES_TO_INPUT = frozenset(
    {"Squeeze", "Unsqueeze", *(name for name in SAME_SINCE if name.startswith("Reduce"))}
)
_KEEP_RANK = frozenset(
    {
        *("AveragePool", "BatchNormalization", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "Dropout"),
        *("GlobalAveragePool", "GlobalMaxPool", "Identity", "LRN", "LeakyRelu", "MaxPool", "Relu", "Sigmoid"),
        *("Softmax", "Tanh"),
    }
)


@dataclass(frozen=True)
class _Respelling:
    """What to do to a node.

    Attributes:
        node: the node.
        drop: attribute to remove; "" where the node stays as it is.
        value: what becomes its second input.
        axis: what `axis` is set to.
        matrix: whether the operator is to see all axes from its axis on as one.
    """

    node: ir.Node
    drop: str
    value: np.ndarray | None = None
    axis: int | None = None
    matrix: bool = False


def carry_over(model: ir.Model, target: int) -> bool:
    """Bring a model to a later opset `target`, in place, if all its nodes mean there what they mean now.

    Returns:
        Whether they do; where not, nothing was changed.
    """
    version = model.opset_imports[""]
    if model.functions or version < _OLDEST or target < 18:
        return False
    respellings: list[_Respelling] = []
    for graph in all_graphs(model):
        for node in graph:
            if node.domain != "":
                continue
            how = _how(node.op_type, version, target)
            if how is None:
                return False
            respelling = how(node)
            if respelling is None:
                return False
            if respelling.drop:
                respellings.append(respelling)
    constants = _Constants(model)
    for respelling in respellings:
        _respell(respelling, constants)
    relabel(model, target)
    return True


def _respell(change: _Respelling, constants: _Constants) -> None:
    node = change.node
    if change.matrix:
        assert node.graph is not None
        as_matrix(node.graph, node)
        return
    node.attributes.pop(change.drop, None)
    if node.op_type == "Dropout":
        for mask in node.outputs[1:]:
            mask.type = ir.TensorType(ir.DataType.BOOL)
    if change.axis is not None:
        node.attributes["axis"] = ir.AttrInt64("axis", change.axis)
    if change.value is not None:
        node.resize_inputs(2)
        node.replace_input_with(1, constants.value(change.value, change.drop))


class _Constants:
    """Initializers for what used to be attributes; equal ones are one."""

    def __init__(self, model: ir.Model):
        self._model = model
        self._known: dict[tuple[str, bytes], ir.Value] = {}
        self._taken: set[str | None] | None = None

    def value(self, array: np.ndarray, hint: str) -> ir.Value:
        key = (array.dtype.str, array.tobytes())
        if key not in self._known:
            name = self._free("_".join([hint, *map(str, array.reshape(-1).tolist())]))
            tensor = tensor_of(array, name)
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            self._known[key] = value = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
            self._model.graph.register_initializer(value)
        return self._known[key]

    def _free(self, name: str) -> str:
        if self._taken is None:
            self._taken = {
                value.name
                for graph in all_graphs(self._model)
                for value in (
                    *graph.inputs,
                    *graph.initializers.values(),
                    *(output for node in graph for output in node.outputs),
                )
            }
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


_How = Callable[[ir.Node], _Respelling | None]


@functools.lru_cache(maxsize=1024)
def _how(op_type: str, version: int, target: int) -> _How | None:
    """How nodes of an operator are carried over; None where they are not."""
    try:
        schema = onnx.defs.get_schema(op_type, version, "")
        newer = onnx.defs.get_schema(op_type, target, "")
    except onnx.defs.SchemaError:
        return None
    since = schema.since_version
    known = frozenset(newer.attributes)
    if since == newer.since_version:
        return lambda node: _Respelling(node, "")
    if op_type in ("Softmax", "LogSoftmax", "Hardmax") and since < 13:
        return _softmax
    if op_type == "Dropout" and since < 12:
        return _dropout
    if op_type == "BatchNormalization" and since < 14:
        return lambda node: _plain(node, known) if _has_one_output(node) else None
    old_rule = op_type in SAME_SINCE and since >= SAME_SINCE[op_type]
    new_rule = same_version(op_type, version, 18) and op_type not in CHANGED_SINCE_18
    if not (old_rule or new_rule):
        return None
    if op_type == "Split":
        return lambda node: _plain(node, known) if len(node.inputs) == 2 else None
    if op_type in _AXES_TO_INPUT and "axes" in schema.attributes:
        return lambda node: _with_axes(node, known)
    return lambda node: _plain(node, known)


def _plain(node: ir.Node, known: frozenset[str]) -> _Respelling | None:
    return _Respelling(node, "") if known.issuperset(node.attributes.data) else None


def _has_one_output(node: ir.Node) -> bool:
    """More than one means that a batch norm is trained."""
    return all(not output.name for output in node.outputs[1:])


def _with_axes(node: ir.Node, known: frozenset[str]) -> _Respelling | None:
    if not (known | {"axes"}).issuperset(node.attributes.data) or len(node.inputs) != 1:
        return None
    given = node.attributes.data.get("axes")
    if given is None:
        # Without axes all are meant; Unsqueeze must have them.
        return _Respelling(node, "") if node.op_type != "Unsqueeze" else None
    if given.ref_attr_name is not None:
        return None
    return _Respelling(node, "axes", np.array(given.as_ints(), np.int64))


def _dropout(node: ir.Node) -> _Respelling | None:
    """At inference the ratio does nothing; what was its attribute is an input now."""
    if set(node.attributes.data) - {"ratio"} or len(node.inputs) != 1:
        return None
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        # The mask was not always boolean.
        return None
    return _Respelling(node, "ratio", np.array(node.attributes.get_float("ratio", 0.5), np.float32))


def _softmax(node: ir.Node) -> _Respelling | None:
    """Before opset 13 all axes from the given one (1 by default) on were one; that may be the last one."""
    axis = node.attributes.get_int("axis", 1)
    rank = _rank(node.inputs[0])
    if set(node.attributes.data) - {"axis"} or (axis != -1 and rank is None):
        return None
    return _Respelling(node, "axis", axis=axis, matrix=rank is not None and axis not in (-1, rank - 1))


def _rank(value: ir.Value | None) -> int | None:
    """The rank of a value before any shape was inferred, where it is plain."""
    while value is not None:
        if value.shape is not None:
            return len(value.shape)
        node = value.producer()
        if node is None or node.domain != "":
            return None
        if node.op_type in ("Gemm", "Flatten"):
            return 2
        if node.op_type not in _KEEP_RANK:
            return None
        value = node.inputs[0]
    return None
