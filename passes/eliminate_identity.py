"""`eliminate-identity`: drop operators that hand their input on unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from ..ir.static import known_equal
from .base import Pass, PassContext
from .leftovers import hand_on
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Remove operators whose first output equals their first input.

    Fires on:
    1. Identity; Dropout in inference mode whose mask is unused; Concat, Sum, Max, Min, Mean of one input.
    2. Cast to the type the input has.
    3. Transpose with the identity permutation; Reshape, Flatten, Expand, Squeeze, Unsqueeze whose output
       shape is the input's, number by number or symbol by symbol.
    4. Tile by ones, Pad by zeros, Slice of everything, Split into one, Resize by scales of one (known
       shapes).
    5. Add and Sub of 0, Mul and Div by 1, Pow by 1, where the constant does not broadcast the input.
    6. Pooling with a 1x1 window, stride 1 and no padding; Clip without bounds.

    Where the node turns a graph input, an initializer or another graph output directly into a graph output,
    something must produce that name: an Identity stays, or takes its place.
    """

    name: ClassVar[str] = "eliminate-identity"

    def rules(self) -> tuple[Rule, ...]:
        """The rules of the list above."""
        return (RemoveIdentity(),)

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive one rule over the graph."""
        context.rewrite(model, *self.rules())


def _always(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _single_input(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _dropout(node: ir.Node) -> ir.Value | None:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant_array(node.inputs[2])
        if training is None or training.any():
            return None
    return node.inputs[0]


def _cast(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    to = node.attributes.get_int("to", -1)
    return source if source is not None and source.dtype is not None and int(source.dtype) == to else None


def _transpose(node: ir.Node) -> ir.Value | None:
    perm = node.attributes.get_ints("perm", ())
    return node.inputs[0] if perm and list(perm) == sorted(perm) else None


def _same_shape(node: ir.Node) -> ir.Value | None:
    before, after = node.inputs[0], node.outputs[0]
    return before if before is not None and known_equal(before.shape, after.shape) else None


def _constant_all(index: int, wanted: int) -> Callable[[ir.Node], ir.Value | None]:
    def test(node: ir.Node) -> ir.Value | None:
        array = constant_array(node.inputs[index]) if len(node.inputs) > index else None
        return node.inputs[0] if array is not None and bool(np.all(array == wanted)) else None

    return test


def _slice(node: ir.Node) -> ir.Value | None:
    if _same_shape(node) is None:
        return None
    steps = (
        constant_array(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else np.ones(1)
    )
    # A negative step reverses even where the shape stays.
    return node.inputs[0] if steps is not None and bool(np.all(steps == 1)) else None


def _resize(node: ir.Node) -> ir.Value | None:
    if node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return None
    scales = constant_array(node.inputs[2]) if len(node.inputs) > 2 else None
    ones = scales is not None and scales.size > 0 and bool(np.all(scales == 1))
    return _same_shape(node) if ones else None


def _neutral(value: float, *, commutative: bool) -> Callable[[ir.Node], ir.Value | None]:
    def test(node: ir.Node) -> ir.Value | None:
        if len(node.inputs) != 2:
            return None
        sides = [(0, 1), (1, 0)] if commutative else [(0, 1)]
        for kept, other in sides:
            source, array = node.inputs[kept], constant_array(node.inputs[other], _NEUTRAL_LIMIT)
            if source is None or array is None or array.size == 0 or array.item(0) != value:
                continue
            if not bool(np.all(array == value)):
                continue
            if _keeps_shape(source, array.shape):
                return source
        return None

    return test


def _keeps_shape(source: ir.Value, other: tuple[int, ...]) -> bool:
    """Whether broadcasting against `other` leaves the shape of `source` as it is."""
    if all(dim == 1 for dim in other) and source.shape is not None:
        return len(other) <= len(source.shape)
    if source.shape is None or len(other) > len(source.shape):
        return False
    tail = list(source.shape)[len(source.shape) - len(other) :]
    return all(theirs == 1 or theirs == ours for ours, theirs in zip(tail, other, strict=True))


def _pool(node: ir.Node) -> ir.Value | None:
    window = node.attributes.get_ints("kernel_shape", ())
    if not window or any(k != 1 for k in window):
        return None
    if any(s != 1 for s in node.attributes.get_ints("strides", ())):
        return None
    if any(node.attributes.get_ints("pads", ())):
        return None
    return node.inputs[0]


def _clip(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if all(bound is None for bound in node.inputs[1:]) else None


_NEUTRAL_LIMIT = 1 << 20

_TESTS: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Concat": _single_input,
    "Sum": _single_input,
    "Max": _single_input,
    "Min": _single_input,
    "Mean": _single_input,
    "Cast": _cast,
    "Transpose": _transpose,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Expand": _same_shape,
    "Squeeze": _same_shape,
    "Unsqueeze": _same_shape,
    "Tile": _constant_all(1, 1),
    "Pad": _constant_all(1, 0),
    "Slice": _slice,
    "Split": _same_shape,
    "Resize": _resize,
    "Add": _neutral(0, commutative=True),
    "Sub": _neutral(0, commutative=False),
    "Mul": _neutral(1, commutative=True),
    "Div": _neutral(1, commutative=False),
    "Pow": _neutral(1, commutative=False),
    "AveragePool": _pool,
    "MaxPool": _pool,
    "Clip": _clip,
}


class RemoveIdentity(Rule):
    """op(x, ...) = x  =>  x."""

    op_types: ClassVar[tuple[str, ...]] = tuple(_TESTS)
    label: ClassVar[str] = "removed"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace the node by its first input."""
        test = _TESTS.get(node.op_type)
        if test is None or not node.inputs or node.inputs[0] is None:
            return False
        source = test(node)
        if source is None:
            return False
        target = node.outputs[0]
        if any(extra.uses() or extra.is_graph_output() for extra in node.outputs[1:]):
            return False
        producer = source.producer()
        if target.is_graph_output() and (
            producer is None or source.is_graph_output() or producer.graph is not node.graph
        ):
            if node.op_type == "Identity":
                return "it gives a graph output its name"
            return hand_on(node, source, rewriter)
        rewriter.replace(node, [source, *[None] * (len(node.outputs) - 1)])
        return True
