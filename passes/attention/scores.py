"""From the weights of an attention down to the product of queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_array
from ...ir.static import input_of, only_reader, producer_of, static_shape
from .dimensions import Dim, dims_of, same_dims
from .masks import Added, Bias, Filled, Times, Total, Viewed, rows_can_be_empty
from .operands import scalar_of

_DEPTH = 24
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_LOWEST = -1e30
_HIDDEN = -1e30
"""Added instead of a finite fill: low enough for equal weights where a whole row is masked."""


@dataclass
class Scores:
    """Spelled-out scores, read from the inside: bias + softcap(scale * q k^T).

    Attributes:
        product: The node that multiplies queries and keys.
        scale: Constant factor of the product, before the softcap.
        softcap: c of c tanh(x / c), 0 for none.
        bias: What is added behind that, None for nothing.
        factors: Values that the queries are multiplied by (True) or divided by (False).
        levels: Leading dimensions of the scores wherever they are viewed, from the inside.
    """

    product: ir.Node
    scale: float = 1.0
    softcap: float = 0.0
    bias: Bias | None = None
    factors: list[tuple[ir.Value, bool]] = field(default_factory=list)
    levels: list[tuple[Dim, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class Weights:
    """What becomes the weights of an attention.

    Attributes:
        softmax: The node.
        guarded: Whether NaN of rows that are masked entirely is turned into zero behind it.
        turned: Whether the weights are read transposed.
    """

    softmax: ir.Node
    guarded: bool = False
    turned: bool = False


def find_softmax(value: ir.Value | None) -> Weights | None:
    """The softmax over the last axis that `value` comes from, seen through casts, views and NaN guards."""
    guarded = turned = False
    for _ in range(6):
        node = value.producer() if value is not None else None
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        rank = len(dims_of(node.outputs[0]) or ())
        if node.op_type == "Softmax":
            axis = node.attributes.get_int("axis", -1)
            return Weights(node, guarded, turned) if rank and axis in (-1, rank - 1) else None
        if _does_nothing(node) or (node.op_type in _VIEWS and _keeps_matrices(node)):
            value = node.inputs[0]
        elif node.op_type == "Where":
            value = _guarded(node)
            guarded = True
        elif node.op_type == "Transpose" and rank > 1:
            perm = [*range(rank - 2), rank - 1, rank - 2]
            if list(node.attributes.get_ints("perm", tuple(reversed(range(rank)))) or ()) != perm:
                return None
            value, turned = node.inputs[0], not turned
        else:
            return None
    return None


def _guarded(node: ir.Node) -> ir.Value | None:
    """Return p of Where(IsNaN(p), 0, p)."""
    test = producer_of(node.inputs[0], "IsNaN")
    weights = node.inputs[2]
    same = test is not None and weights is not None and test.inputs[0] is weights
    return weights if same and scalar_of(node.inputs[1]) == 0 else None


def _does_nothing(node: ir.Node) -> bool:
    """Identity, a cast between floats, and dropout that is off."""
    if node.op_type == "Cast":
        source = node.inputs[0]
        return source is not None and source.dtype in _FLOATS and node.outputs[0].dtype in _FLOATS
    if node.op_type == "Dropout":
        training = constant_array(input_of(node, 2))
        off = input_of(node, 2) is None or (training is not None and not training.any())
        return off and not any(output.uses() or output.is_graph_output() for output in node.outputs[1:])
    return node.op_type == "Identity"


@dataclass(frozen=True)
class _Step:
    kind: str
    value: ir.Value | None = None
    number: float = 0.0
    flag: bool = True
    dims: tuple[Dim, ...] = ()


def read_scores(softmax: ir.Node, hides: float) -> Scores | str | None:
    """Read what the softmax is taken of.

    Args:
        softmax: The node.
        hides: A number this low, put in place of a score, hides the key.

    Returns:
        The scores; None where they come from no product of two matrices; a text where they do, but in a
        way that Attention cannot say.
    """
    value = softmax.inputs[0]
    steps: list[_Step] = []
    for _ in range(_DEPTH):
        node = value.producer() if value is not None else None
        if value is None or node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "MatMul":
            dims = dims_of(value)
            return None if dims is None else _assemble(node, steps, dims[:-2], hides)
        if not only_reader(value):
            return f"'{value.name}' has other readers" if _reaches_product(value) else None
        step = _step(node)
        if step is None:
            return (
                f"'{node.name}' ({node.op_type}) stands between product and softmax"
                if (_reaches_product(value))
                else None
            )
        value, found = step
        steps.extend(found)
    return None


def _reaches_product(value: ir.Value | None, depth: int = 6) -> bool:
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return False
    if node.op_type == "MatMul":
        return not any(constant_array(each, 1 << 30) is not None for each in node.inputs)
    return node.op_type in _ON_SCORES and any(_reaches_product(each, depth - 1) for each in node.inputs)


_VIEWS = frozenset(("Reshape", "Squeeze", "Unsqueeze"))
_ON_SCORES = _VIEWS | {"Add", "Cast", "Div", "Dropout", "Identity", "Max", "Mul", "Sub", "Tanh", "Where"}


def _step(node: ir.Node) -> tuple[ir.Value | None, list[_Step]] | None:
    """The value one operator further in and what the operator did, outermost first."""
    if _does_nothing(node):
        return node.inputs[0], []
    if node.op_type in _VIEWS:
        outer = dims_of(node.outputs[0])
        if outer is None or not _keeps_matrices(node):
            return None
        return node.inputs[0], [_Step("view", dims=outer[:-2])]
    if node.op_type == "Where":
        return _where(node)
    if node.op_type == "Max":
        for data, other in ((0, 1), (1, 0)) if len(node.inputs) == 2 else ():
            floor = scalar_of(node.inputs[other])
            if floor is not None and floor <= _LOWEST:
                return node.inputs[data], []
        return None
    if node.op_type == "Mul":
        return _multiplied(node)
    if node.op_type == "Div":
        number = scalar_of(node.inputs[1])
        if number:
            return node.inputs[0], [_Step("times", number=1.0 / number)]
        return (node.inputs[0], [_Step("factor", node.inputs[1], flag=False)]) if _per_head(node, 1) else None
    if node.op_type == "Add":
        side = _scores_side(node)
        return None if side is None else (node.inputs[side], [_Step("add", node.inputs[1 - side])])
    if node.op_type == "Sub" and _reaches_product(node.inputs[0]):
        return node.inputs[0], [_Step("add", node.inputs[1], flag=False)]
    return None


def _keeps_matrices(node: ir.Node) -> bool:
    """Whether a view changes leading dimensions only."""
    outer, inner = dims_of(node.outputs[0]), dims_of(node.inputs[0])
    return outer is not None and inner is not None and len(inner) > 1 and same_dims(outer[-2:], inner[-2:])


def _where(node: ir.Node) -> tuple[ir.Value | None, list[_Step]] | None:
    for data, other in ((1, 2), (2, 1)):
        fill = scalar_of(node.inputs[other])
        if fill is not None and scalar_of(node.inputs[data]) is None:
            return node.inputs[data], [_Step("fill", node.inputs[0], fill, data == 1)]
    return None


def _multiplied(node: ir.Node) -> tuple[ir.Value | None, list[_Step]] | None:
    for data, other in ((0, 1), (1, 0)):
        number = scalar_of(node.inputs[other])
        if number is None:
            continue
        tanh = producer_of(node.inputs[data], "Tanh")
        if tanh is None:
            return node.inputs[data], [_Step("times", number=number)]
        inner = node.inputs[data]
        if inner is None or not only_reader(inner) or number <= 0:
            return None
        return tanh.inputs[0], [_Step("cap", number=number)]
    for data, other in ((0, 1), (1, 0)):
        if _per_head(node, other) and _reaches_product(node.inputs[data]):
            return node.inputs[data], [_Step("factor", node.inputs[other])]
    return None


def _per_head(node: ir.Node, index: int) -> bool:
    """Whether an operand is the same for all queries and keys, so that the queries can carry it."""
    shape, whole = static_shape(node.inputs[index]), dims_of(node.outputs[0])
    return (
        shape is not None
        and whole is not None
        and len(shape) <= len(whole)
        and all(dim == 1 for dim in shape[-2:])
    )


def _scores_side(node: ir.Node) -> int | None:
    """Which operand of an Add the scores are; the one that comes from a product and spans the whole shape."""
    whole = dims_of(node.outputs[0])
    candidates = [i for i in (0, 1) if _reaches_product(node.inputs[i])]
    if len(candidates) == 2 and whole is not None:
        candidates = [i for i in candidates if same_dims(dims_of(node.inputs[i]) or (), whole)][:1]
    return candidates[0] if candidates else None


def _assemble(product: ir.Node, steps: Sequence[_Step], lead: tuple[Dim, ...], hides: float) -> Scores | str:
    scores = Scores(product, levels=[lead])
    for step in reversed(steps):
        bias = scores.bias
        if step.kind == "view":
            if bias is not None:
                scores.bias = Viewed(bias, scores.levels[-1], step.dims)
            scores.levels.append(step.dims)
        elif step.kind == "times":
            if scores.softcap:
                return "the capped scores are scaled again"
            scores.scale *= step.number
            scores.bias = None if bias is None else Times(bias, step.number)
        elif step.kind == "cap":
            if bias is not None or scores.softcap:
                return "the scores are capped behind the mask"
            scores.softcap, scores.scale = step.number, scores.scale * step.number
        elif step.kind == "factor":
            if bias is not None or scores.softcap or len(scores.levels) > 1:
                return "the scores are scaled by a tensor behind the mask"
            assert step.value is not None
            scores.factors.append((step.value, step.flag))
        elif step.kind == "add":
            assert step.value is not None
            added = _added(step.value, step.flag)
            if _hides_rows(bias):
                return "more is added to scores of which whole rows may be masked"
            scores.bias = added if bias is None else Total(bias, added)
        else:
            assert step.kind == "fill" and step.value is not None
            if not step.number <= hides:
                return f"scores are replaced by {step.number:g}, which may not hide a key (option 'hides')"
            fill = step.number if step.number == -np.inf else _HIDDEN
            scores.bias = Filled(step.value, step.flag, fill, bias)
    return scores if np.isfinite(scores.scale) else "its scale is not finite"


def _added(value: ir.Value, positive: bool) -> Bias:
    """What an Add adds; the choice of a number or zero told apart from other values."""
    node = producer_of(value, "Where")
    if node is not None and node.inputs[0] is not None and positive:
        yes, no = scalar_of(node.inputs[1]), scalar_of(node.inputs[2])
        if yes == 0 and no is not None:
            return Filled(node.inputs[0], True, no)
        if no == 0 and yes is not None:
            return Filled(node.inputs[0], False, yes)
    return Added(value, negative=not positive)


def _hides_rows(bias: Bias | None) -> bool:
    """Whether a finite fill may have replaced whole rows of scores, which then show what is added behind."""
    if isinstance(bias, Filled) and bias.fill == _HIDDEN:
        return rows_can_be_empty(Filled(bias.condition, bias.keeps, -np.inf))
    return isinstance(bias, Viewed | Times) and _hides_rows(bias.inside)
