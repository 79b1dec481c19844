"""Composite operators in terms of simpler ones, before anything else looks at the graph.

What remains are operators that fuse well; the pieces of a normalization over channels, say, end in the
kernels around it. Operators that ONNX itself defines by others, and for which there is no better way, are
expanded by that definition (see `expand`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from ...ir.errors import CompileError
from ...ir.shapes import infer_shapes
from ...passes.rewriter import Rewriter
from .attention import attention
from .op import attributes_of, type_of
from .recurrent import recurrent

if TYPE_CHECKING:
    from ..target import Target


@dataclass
class Assembler:
    """Inserts nodes in front of the one that is being replaced."""

    rewriter: Rewriter
    node: ir.Node
    target: Target | None = None
    """What the code is for; None while that is not decided."""

    def __call__(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """A new node; numbers and arrays among the inputs become constants.

        Returns:
            Its output, or a list of them if there are several.
        """
        values = [self._value(each) for each in inputs]
        made = self.rewriter.insert_before(self.node, op_type, values, attributes, num_outputs=outputs)
        return made[0] if outputs == 1 else made

    def _value(self, given: Any) -> ir.Value | None:
        if given is None or isinstance(given, ir.Value):
            return given
        array = np.asarray(given)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return self.rewriter.initializer(f"{self.node.name}/constant", array)

    def shape(self, position: int) -> tuple[int, ...]:
        """Static shape of an input of the node that is being replaced."""
        value = self.input(position)
        if value is None:
            raise self.error(f"input {position} is missing")
        return type_of(value).shape

    def input(self, position: int) -> ir.Value | None:
        """An input of the node, None where it is absent."""
        return self.node.inputs[position] if position < len(self.node.inputs) else None

    def number(self, value: float, like: int = 0) -> np.ndarray:
        """A scalar of the element type of an input."""
        source = self.input(like)
        assert source is not None and source.dtype is not None
        return np.asarray(value, source.dtype.numpy())

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return attributes_of(self.node).get(name, default)

    def uses(self, position: int) -> bool:
        """Whether an output of the node is read."""
        if position >= len(self.node.outputs):
            return False
        output = self.node.outputs[position]
        return bool(output.uses()) or output.is_graph_output()

    def error(self, problem: str) -> CompileError:
        """One line that names the node."""
        return CompileError(f"node '{self.node.name}' ({self.node.op_type}): {problem}")


Decomposition = Callable[[Assembler], Sequence[ir.Value | None] | None]
"""Values for the outputs of a node, or None to leave it as it is."""


def decompose(model: ir.Model, target: Target | None = None) -> None:
    """Replace composite operators in place; shapes of the new values are inferred.

    With a target, operators that only the lowering knows may stand for what it has kernels for.
    """
    rewriter = Rewriter(model, origin="lowering")
    changed = False
    for node in list(model.graph):
        make = _DECOMPOSITIONS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        results = make(Assembler(rewriter, node, target)) if make is not None else None
        if results is None:
            continue
        missing = [None] * (len(node.outputs) - len(results))
        operands = [value.producer() for value in node.inputs if value is not None]
        rewriter.replace(node, [*results, *missing])
        for operand in operands:
            rewriter.erase_unread(operand)
        changed = True
    if changed:
        infer_shapes(model)


def _channel_shape(rank: int) -> list[int]:
    return [-1] + [1] * (rank - 2)


def _instance_norm(new: Assembler) -> Sequence[ir.Value | None]:
    return [_normalized(new, new.shape(0)[1])]


def _group_norm(new: Assembler) -> Sequence[ir.Value | None]:
    return [_normalized(new, new.attr("num_groups"))]


def _normalized(new: Assembler, groups: int) -> ir.Value:
    """Normalization over the channels of each group and all positions.

    Means are taken per channel and then of the channels of a group, so that the input is never seen in
    another shape: it may be stored in any layout. The distance from the mean is computed where it is read.
    """
    shape = new.shape(0)
    rank, batch, channels = len(shape), *shape[:2]
    x, scale, bias = (new.input(position) for position in range(3))
    assert x is not None
    spatial = np.array(range(2, rank), np.int64)
    thin = np.array([batch, channels, *(1,) * (rank - 2)], np.int64)
    split = np.array([batch, groups, channels // groups], np.int64)
    per_channel = np.array(_channel_shape(rank), np.int64)

    def mean_of(value: ir.Value) -> ir.Value:
        value = new("ReduceMean", value, spatial, keepdims=1) if rank > 2 else value
        if groups == channels:
            return value
        mean = new("ReduceMean", new("Reshape", value, split), np.array([2], np.int64), keepdims=1)
        return new("Reshape", new("Expand", mean, split), thin)

    mean = mean_of(x)
    distance = new("Sub", x, mean)
    variance = mean_of(new("Mul", distance, distance))
    inverse = new("Reciprocal", new("Sqrt", new("Add", variance, new.number(new.attr("epsilon", 1e-5)))))
    factor = new("Mul", inverse, new("Reshape", scale, per_channel))
    return new("Add", new("Mul", new("Sub", x, mean), factor), new("Reshape", bias, per_channel))


def _layer_norm(new: Assembler) -> Sequence[ir.Value | None] | None:
    """Only where mean or deviation are asked for as well."""
    if not new.uses(1) and not new.uses(2):
        return None
    rank = len(new.shape(0))
    axes = np.array(range(new.attr("axis", -1) % rank, rank), np.int64)
    x = new.input(0)
    mean = new("ReduceMean", x, axes, keepdims=1)
    centred = new("Sub", x, mean)
    variance = new("ReduceMean", new("Mul", centred, centred), axes, keepdims=1)
    inverse = new("Reciprocal", new("Sqrt", new("Add", variance, new.number(new.attr("epsilon", 1e-5)))))
    scaled = new("Mul", new("Mul", centred, inverse), new.input(1))
    done = new("Add", scaled, new.input(2)) if new.input(2) is not None else scaled
    return [done, mean, inverse]


def _mean_variance_norm(new: Assembler) -> Sequence[ir.Value | None]:
    axes = np.array(new.attr("axes") or (0, 2, 3), np.int64)
    centred = new("Sub", new.input(0), new("ReduceMean", new.input(0), axes, keepdims=1))
    deviation = new("Sqrt", new("ReduceMean", new("Mul", centred, centred), axes, keepdims=1))
    return [new("Div", centred, new("Add", deviation, new.number(1e-9)))]


def _lp_normalization(new: Assembler) -> Sequence[ir.Value | None]:
    axis = np.array([new.attr("axis", -1)], np.int64)
    reduce = "ReduceL1" if new.attr("p", 2) == 1 else "ReduceL2"
    norm = new(reduce, new.input(0), axis, keepdims=1)
    # A row of zeros stays zero.
    safe = new("Where", new("Equal", norm, new.number(0)), new.number(1), norm)
    return [new("Div", new.input(0), safe)]


def _log_sum_exp(new: Assembler) -> Sequence[ir.Value | None] | None:
    x = new.input(0)
    assert x is not None
    if x.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    axes = new.input(1)
    keep = {"keepdims": 1, "noop_with_empty_axes": new.attr("noop_with_empty_axes", 0)}
    top = new("ReduceMax", x, axes, **keep)
    total = new("ReduceSum", new("Exp", new("Sub", x, top)), axes, **keep)
    result = new("Add", new("Log", total), top)
    if new.attr("keepdims", 1):
        return [result]
    shape = np.array(type_of(new.node.outputs[0]).shape, np.int64)
    return [new("Reshape", result, shape)]


def _global_lp_pool(new: Assembler) -> Sequence[ir.Value | None] | None:
    if new.attr("p", 2) not in (1, 2):
        return None
    axes = np.array(range(2, len(new.shape(0))), np.int64)
    return [new("ReduceL1" if new.attr("p", 2) == 1 else "ReduceL2", new.input(0), axes, keepdims=1)]


def _rotary_embedding(new: Assembler) -> Sequence[ir.Value | None]:
    shape = new.shape(0)
    if len(shape) == 3:
        heads = new.attr("num_heads")
        split = np.array([shape[0], shape[1], heads, shape[2] // heads], np.int64)
        x = new("Transpose", new("Reshape", new.input(0), split), perm=[0, 2, 1, 3])
        size = shape[2] // heads
    else:
        x, size = new.input(0), shape[3]
    turned = new.attr("rotary_embedding_dim", 0) or size
    cos, sin = (_angles(new, position, turned) for position in (1, 2))
    moved, rest = (
        (x, None)
        if turned == size
        else new("Split", x, np.array([turned, size - turned], np.int64), outputs=2, axis=-1)
    )
    result = _rotated(new, moved, cos, sin, turned)
    if rest is not None:
        result = new("Concat", result, rest, axis=-1)
    if len(shape) == 3:
        result = new("Reshape", new("Transpose", result, perm=[0, 2, 1, 3]), np.array(shape, np.int64))
    return [result]


def _angles(new: Assembler, position: int, turned: int) -> ir.Value:
    """A cosine or sine table as (batch, 1, sequence, turned / 2)."""
    table = new.input(position)
    if new.input(3) is not None:
        table = new("Gather", table, new.input(3), axis=0)
    return new("Unsqueeze", table, np.array([1], np.int64))


def _rotated(new: Assembler, x: ir.Value, cos: ir.Value, sin: ir.Value, turned: int) -> ir.Value:
    if not new.attr("interleaved", 0):
        real, imaginary = new("Split", x, outputs=2, axis=-1, num_outputs=2)
    else:
        steps = [np.array([start], np.int64) for start in (0, 1)]
        end, axis, two = np.array([turned], np.int64), np.array([-1], np.int64), np.array([2], np.int64)
        real, imaginary = (new("Slice", x, start, end, axis, two) for start in steps)
    first = new("Sub", new("Mul", cos, real), new("Mul", sin, imaginary))
    second = new("Add", new("Mul", sin, real), new("Mul", cos, imaginary))
    if not new.attr("interleaved", 0):
        return new("Concat", first, second, axis=-1)
    last = np.array([-1], np.int64)
    pairs = new("Concat", new("Unsqueeze", first, last), new("Unsqueeze", second, last), axis=-1)
    return new("Reshape", pairs, np.array([0, 0, 0, turned], np.int64))


_DECOMPOSITIONS: dict[str, Decomposition] = {
    "Attention": attention,
    "GlobalLpPool": _global_lp_pool,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_normalization,
    "MeanVarianceNormalization": _mean_variance_norm,
    "GRU": recurrent,
    "LSTM": recurrent,
    "RNN": recurrent,
    "ReduceLogSumExp": _log_sum_exp,
    "RotaryEmbedding": _rotary_embedding,
}
