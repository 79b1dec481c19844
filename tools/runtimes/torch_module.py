"""A torch module that computes a graph, so that torch.compile can run graphs that were pruned.

Only operators that the benchmark's models hold after `simplify,fold-batch-norm`; shapes must be static. The
module is one call of torch per operator, which is what a user of torch would write.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import fx

from ...ir.constants import constant_array
from ...ir.errors import ToolError

Emitted = Any
"""A node of `torch.fx`, or several for an operator with several outputs."""


class _Emitter:
    """Builds the graph, one node after another."""

    def __init__(self) -> None:
        self.root = torch.nn.Module()
        self.graph = fx.Graph()
        self.values: dict[ir.Value, fx.Node] = {}

    def call(self, function: Callable[..., Any], *arguments: Any, **more: Any) -> fx.Node:
        return self.graph.call_function(function, arguments, more)

    def tensor(self, value: ir.Value | None) -> fx.Node | None:
        """A value as an argument; constants become buffers when they are first used."""
        if value is None:
            return None
        if value not in self.values:
            array = constant_array(value)
            if array is None:
                raise ToolError(f"{value.name!r} is neither computed nor constant")
            self.values[value] = self.buffer(torch.from_numpy(np.array(array)))
        return self.values[value]

    def buffer(self, data: torch.Tensor) -> fx.Node:
        name = f"constant_{len(list(self.root.buffers()))}"
        self.root.register_buffer(name, data)
        return self.graph.get_attr(name)

    def inputs(self, node: ir.Node) -> list[fx.Node | None]:
        return [self.tensor(value) for value in node.inputs]

    @staticmethod
    def ints(value: ir.Value | None) -> list[int]:
        array = constant_array(value) if value is not None else None
        if array is None:
            raise ToolError("a size or an axis is computed; only static ones have a torch form")
        return [int(each) for each in np.atleast_1d(array)]

    @staticmethod
    def number(value: ir.Value | None) -> float | None:
        array = constant_array(value) if value is not None else None
        return None if array is None else float(array)


def torch_module(model: ir.Model) -> fx.GraphModule:
    """The module of a graph; it takes the graph's inputs in order and returns a tuple of its outputs.

    Raises:
        ToolError: an operator has no torch form here.
    """
    emitter = _Emitter()
    for value in model.graph.inputs:
        if value.name not in model.graph.initializers:
            emitter.values[value] = emitter.graph.placeholder(str(value.name))
    for node in model.graph:
        form = _FORMS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if form is None:
            raise ToolError(f"{node.op_type} has no torch form in this benchmark")
        made = form(emitter, node)
        outputs = made if isinstance(made, list) else [made]
        emitter.values.update(zip(node.outputs, outputs, strict=False))
    emitter.graph.output(tuple(emitter.tensor(value) for value in model.graph.outputs))
    return fx.GraphModule(emitter.root, emitter.graph).eval()


def _plain(function: Any) -> Callable[[_Emitter, ir.Node], Emitted]:
    return lambda emitter, node: emitter.call(function, *emitter.inputs(node))


def _pads(node: ir.Node, rank: int) -> tuple[list[int], list[int]]:
    """Paddings that torch takes as an argument, and those that need a call of `F.pad`, in its order."""
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ToolError("automatic padding has no torch form in this benchmark")
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    begin, end = pads[:rank], pads[rank:]
    if begin == end:
        return begin, []
    return [0] * rank, [each for pair in zip(begin[::-1], end[::-1], strict=True) for each in pair]


def _conv(emitter: _Emitter, node: ir.Node) -> Emitted:
    x, weight, *bias = emitter.inputs(node)
    rank = len(node.inputs[1].shape) - 2  # type: ignore[union-attr, arg-type]
    padding, before = _pads(node, rank)
    if before:
        x = emitter.call(F.pad, x, before)
    attributes = node.attributes
    strides, dilations = (list(attributes.get_ints(name, [1] * rank)) for name in ("strides", "dilations"))
    groups = attributes.get_int("group", 1)
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    if node.op_type == "Conv":
        return emitter.call(
            function, x, weight, bias[0] if bias else None, strides, padding, dilations, groups
        )
    if before or list(attributes.get_ints("output_padding", [0] * rank)) != [0] * rank:
        raise ToolError("this transposed convolution has no torch form in this benchmark")
    function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    return emitter.call(
        function, x, weight, bias[0] if bias else None, strides, padding, 0, groups, dilations
    )


def _gemm(emitter: _Emitter, node: ir.Node) -> Emitted:
    a, b, *c = emitter.inputs(node)
    attributes = node.attributes
    if attributes.get_float("alpha", 1.0) != 1.0 or attributes.get_float("beta", 1.0) != 1.0:
        raise ToolError("scaled Gemm has no torch form in this benchmark")
    if attributes.get_int("transA", 0):
        a = emitter.call(torch.transpose, a, 0, 1)
    if not attributes.get_int("transB", 0):
        b = emitter.call(torch.transpose, b, 0, 1)
    return emitter.call(F.linear, a, b, c[0] if c else None)


def _clip(emitter: _Emitter, node: ir.Node) -> Emitted:
    bounds = [emitter.number(value) for value in node.inputs[1:]]
    return emitter.call(torch.clamp, emitter.tensor(node.inputs[0]), *bounds)


def _layer_norm(emitter: _Emitter, node: ir.Node) -> Emitted:
    x, scale, *bias = emitter.inputs(node)
    shape = [int(size) for size in node.inputs[1].shape]  # type: ignore[union-attr, arg-type]
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    return emitter.call(F.layer_norm, x, shape, scale, bias[0] if bias else None, epsilon)


def _reduce_mean(emitter: _Emitter, node: ir.Node) -> Emitted:
    axes = emitter.ints(node.inputs[1])
    keep = bool(node.attributes.get_int("keepdims", 1))
    return emitter.call(torch.mean, emitter.tensor(node.inputs[0]), axes, keep)


def _global_average(emitter: _Emitter, node: ir.Node) -> Emitted:
    rank = len(node.inputs[0].shape)  # type: ignore[union-attr, arg-type]
    return emitter.call(torch.mean, emitter.tensor(node.inputs[0]), list(range(2, rank)), True)


def _pool(emitter: _Emitter, node: ir.Node) -> Emitted:
    attributes = node.attributes
    kernel = list(attributes.get_ints("kernel_shape"))
    padding, before = _pads(node, len(kernel))
    strides = list(attributes.get_ints("strides", [1] * len(kernel)))
    if before or len(kernel) != 2:
        raise ToolError("this pooling has no torch form in this benchmark")
    x, ceil = emitter.tensor(node.inputs[0]), bool(attributes.get_int("ceil_mode", 0))
    if node.op_type == "MaxPool":
        dilations = list(attributes.get_ints("dilations", [1, 1]))
        return emitter.call(F.max_pool2d, x, kernel, strides, padding, dilations, ceil)
    counted = bool(attributes.get_int("count_include_pad", 0))
    return emitter.call(F.avg_pool2d, x, kernel, strides, padding, ceil, counted)


def _concat(emitter: _Emitter, node: ir.Node) -> Emitted:
    return emitter.call(torch.cat, emitter.inputs(node), node.attributes.get_int("axis"))


def _split(emitter: _Emitter, node: ir.Node) -> Emitted:
    axis = node.attributes.get_int("axis", 0)
    sizes = [int(value.shape[axis]) for value in node.outputs]  # type: ignore[index, arg-type]
    parts = emitter.call(torch.split, emitter.tensor(node.inputs[0]), sizes, axis)
    return [emitter.call(operator.getitem, parts, index) for index in range(len(sizes))]


def _slice(emitter: _Emitter, node: ir.Node) -> Emitted:
    x, starts, ends, *rest = node.inputs
    found = emitter.tensor(x)
    begin, end = emitter.ints(starts), emitter.ints(ends)
    axes = emitter.ints(rest[0]) if rest and rest[0] is not None else list(range(len(begin)))
    steps = emitter.ints(rest[1]) if len(rest) > 1 else [1] * len(begin)
    if min(steps) < 1:
        raise ToolError("slices that go backwards have no torch form in this benchmark")
    for axis, first, last, step in zip(axes, begin, end, steps, strict=True):
        found = emitter.call(torch.ops.aten.slice.Tensor, found, axis, first, last, step)
    return found


def _gather(emitter: _Emitter, node: ir.Node) -> Emitted:
    data, places = node.inputs
    axis = node.attributes.get_int("axis", 0)
    known = constant_array(places) if places is not None else None
    if known is not None and known.ndim == 0:
        return emitter.call(torch.select, emitter.tensor(data), axis, int(known))
    if axis == 0:
        return emitter.call(F.embedding, emitter.tensor(places), emitter.tensor(data))
    return emitter.call(torch.index_select, emitter.tensor(data), axis, emitter.tensor(places))


def _reshape(emitter: _Emitter, node: ir.Node) -> Emitted:
    """Reshape, Flatten, Squeeze and Unsqueeze, and whatever else only gives a shape: it is known."""
    shape = [int(size) for size in node.outputs[0].shape]  # type: ignore[union-attr, arg-type]
    return emitter.call(torch.reshape, emitter.tensor(node.inputs[0]), shape)


def _expand(emitter: _Emitter, node: ir.Node) -> Emitted:
    shape = [int(size) for size in node.outputs[0].shape]  # type: ignore[union-attr, arg-type]
    return emitter.call(torch.broadcast_to, emitter.tensor(node.inputs[0]), shape)


def _transpose(emitter: _Emitter, node: ir.Node) -> Emitted:
    rank = len(node.inputs[0].shape)  # type: ignore[union-attr, arg-type]
    order = list(node.attributes.get_ints("perm", range(rank)[::-1]))
    return emitter.call(torch.permute, emitter.tensor(node.inputs[0]), order)


def _softmax(emitter: _Emitter, node: ir.Node) -> Emitted:
    return emitter.call(F.softmax, emitter.tensor(node.inputs[0]), node.attributes.get_int("axis", -1))


def _gelu(emitter: _Emitter, node: ir.Node) -> Emitted:
    form = node.attributes.get_string("approximate", "none")
    return emitter.call(F.gelu, emitter.tensor(node.inputs[0]), approximate=form)


def _hard_sigmoid(emitter: _Emitter, node: ir.Node) -> Emitted:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    scaled = emitter.call(torch.mul, emitter.tensor(node.inputs[0]), alpha)
    return emitter.call(torch.clamp, emitter.call(torch.add, scaled, beta), 0.0, 1.0)


def _cast(emitter: _Emitter, node: ir.Node) -> Emitted:
    kind = node.outputs[0].dtype
    assert kind is not None
    return emitter.call(
        torch.Tensor.to, emitter.tensor(node.inputs[0]), torch.from_numpy(np.zeros(0, kind.numpy())).dtype
    )


def _resize(emitter: _Emitter, node: ir.Node) -> Emitted:
    before, after = (list(map(int, value.shape)) for value in (node.inputs[0], node.outputs[0]))  # type: ignore[union-attr, arg-type]
    nearest = node.attributes.get_string("mode", "nearest") == "nearest"
    if not nearest or len(after) != 4 or any(a % b for a, b in zip(after, before, strict=True)):
        raise ToolError("only enlarging by whole factors has a torch form in this benchmark")
    return emitter.call(F.interpolate, emitter.tensor(node.inputs[0]), size=after[2:], mode="nearest")


# As for torch's own modules: the compiler leaves recurrence to torch instead of writing every step out.
@torch.compiler.disable
def _gru(*arguments: Any) -> Any:
    return torch.gru(*arguments)


@torch.compiler.disable
def _lstm(*arguments: Any) -> Any:
    return torch.lstm(*arguments)


def _recurrent(emitter: _Emitter, node: ir.Node) -> Emitted:
    """GRU and LSTM over one direction from a zero state; gates are put into torch's order."""
    if node.attributes.get_string("direction", "forward") != "forward":
        raise ToolError("recurrence backwards has no torch form in this benchmark")
    width = node.attributes.get_int("hidden_size")
    gru = node.op_type == "GRU"
    if gru and not node.attributes.get_int("linear_before_reset", 0):
        raise ToolError("this GRU has no torch form in this benchmark")
    order = (1, 0, 2) if gru else (0, 2, 3, 1)  # zrh -> rzn, iofc -> ifgo
    w, r, b = (constant_array(value) for value in node.inputs[1:4] if value is not None)
    assert w is not None and r is not None and b is not None
    gates = len(order)

    def sorted_gates(array: np.ndarray) -> fx.Node:
        parts = array.reshape(gates, width, -1)[list(order)]
        shape = (gates * width, -1) if array.ndim > 1 else (gates * width,)
        return emitter.buffer(torch.from_numpy(np.ascontiguousarray(parts.reshape(shape))))

    half = gates * width
    weights = [sorted_gates(each) for each in (w[0], r[0], b[0, :half], b[0, half:])]
    zero = emitter.buffer(torch.zeros(1, 1, width))
    x = emitter.tensor(node.inputs[0])
    state = zero if gru else [zero, zero]
    found = emitter.call(_gru if gru else _lstm, x, state, weights, True, 1, 0.0, False, False, False)
    steps, *last = (emitter.call(operator.getitem, found, index) for index in range(2 if gru else 3))
    # Outputs are [steps, directions, batch, width].
    return [emitter.call(torch.unsqueeze, steps, 1), *last]


_FORMS: dict[str, Callable[[_Emitter, ir.Node], Emitted]] = {
    **{
        name: _plain(function)
        for name, function in {
            "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow,
            "MatMul": torch.matmul, "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh,
            "Erf": torch.erf, "Sqrt": torch.sqrt, "Exp": torch.exp, "Neg": torch.neg, "Where": torch.where,
            "HardSwish": F.hardswish, "Swish": F.silu, "Reciprocal": torch.reciprocal,
        }.items()
    },
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Gemm": _gemm,
    "Clip": _clip,
    "LayerNormalization": _layer_norm,
    "ReduceMean": _reduce_mean,
    "GlobalAveragePool": _global_average,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Expand": _expand,
    "Transpose": _transpose,
    "Softmax": _softmax,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "Cast": _cast,
    "Resize": _resize,
    "GRU": _recurrent,
    "LSTM": _recurrent,
    "Identity": lambda emitter, node: emitter.tensor(node.inputs[0]),
}  # fmt: skip
