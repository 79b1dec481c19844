"""`merge-projections`: parallel matrix products of one input become one, cut apart behind (merged QKV)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array, constant_tensor
from ..ir.static import input_of, only_reader, rank_of, static_shape
from .analyses import Analysis
from .analyses_graph import Order
from .base import Pass, PassContext
from .registry import register
from .rewriter import Rewriter
from .rules import Rule


@register
@dataclass(frozen=True)
class MergeProjections(Pass):
    """Merge matrix products of the same input with constant weights into one product and a Split.

    x W1, x W2, ... = Split(x [W1 W2 ...]), and with biases Split(x [W1 W2 ...] + [b1 b2 ...]): the queries,
    keys and values of an attention, or the two branches of a gated MLP. It takes MatMul with the Add behind,
    and Gemm with equal attributes.

    Constants do not grow: weights and biases that somebody else reads as well are left. Of products some of
    which have a bias, only the products are merged; the biases stay behind the Split.
    """

    name: ClassVar[str] = "merge-projections"
    needs: ClassVar[tuple[type[Analysis], ...]] = (Order,)

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rule to a fixpoint."""
        context.rewrite(model, MergeProducts(context, self.selects))


@dataclass(frozen=True)
class _Branch:
    """One product: the node, its weights [in, out], the Add behind and its constant [out]."""

    node: ir.Node
    weight: ir.Value
    width: int
    add: ir.Node | None = None
    bias: ir.Value | None = None

    @property
    def result(self) -> ir.Value:
        return (self.add or self.node).outputs[0]


class MergeProducts(Rule):
    """x W1, x W2, ... = Split(x [W1 W2 ...])."""

    op_types: ClassVar[tuple[str, ...]] = ("MatMul", "Gemm")

    def __init__(self, context: PassContext, selects: Callable[[ir.Node], bool]):
        self.context = context
        self.selects = selects

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Collect the products that read the same value, in the order of the graph; the first one does it."""
        own = _branch(node)
        if not isinstance(own, _Branch):
            return own
        x = node.inputs[0]
        assert x is not None
        siblings = dict.fromkeys(user for user, position in x.uses() if position == 0)
        branches = [
            branch
            for user in siblings
            if user.graph is node.graph and self.selects(user)
            if isinstance(branch := _branch(user), _Branch) and _alike(branch, own)
        ]
        if len(branches) < 2:
            return False
        # The first of them stands where all can be computed.
        order = self.context.analysis(Order)
        branches.sort(
            key=functools.cmp_to_key(lambda one, other: -1 if order.before(one.node, other.node) else 1)
        )
        _merge(branches, rewriter)
        return True


def _branch(node: ir.Node) -> _Branch | str | bool:
    if node.op_type not in ("MatMul", "Gemm") or node.domain not in ("", "ai.onnx") or len(node.inputs) < 2:
        return False
    x, weight = node.inputs[:2]
    shape = static_shape(weight)
    if x is None or weight is None or constant_tensor(weight) is None or constant_tensor(x) is not None:
        return False
    if shape is None or len(shape) != 2 or not weight.is_initializer() or rank_of(x) is None:
        return False
    if weight.dtype not in _FLOATS:
        return False
    if len(weight.uses()) > 1:
        return f"its weights '{weight.name}' have other readers"
    if node.op_type == "Gemm":
        return _gemm(node, weight, shape)
    if rank_of(x) == 1:
        return False
    width = shape[1]
    reader = next(iter(node.outputs[0].consumers()), None)
    if reader is not None and reader.op_type == "Add" and only_reader(node.outputs[0]):
        bias = next(value for value in reader.inputs if value is not node.outputs[0])
        if (
            bias is not None
            and bias.is_initializer()
            and static_shape(bias) == (width,)
            and only_reader(bias)
        ):
            return _Branch(node, weight, width, reader, bias)
    return _Branch(node, weight, width)


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _gemm(node: ir.Node, weight: ir.Value, shape: tuple[int, ...]) -> _Branch | bool:
    if node.attributes.get_int("transA", 0):
        return False
    width = shape[0] if node.attributes.get_int("transB", 0) else shape[1]
    bias = input_of(node, 2)
    if bias is not None and not (
        bias.is_initializer() and static_shape(bias) == (width,) and only_reader(bias)
    ):
        return False
    return _Branch(node, weight, width, None, bias)


def _alike(one: _Branch, other: _Branch) -> bool:
    """Whether two products can be one."""
    a, b = one.node, other.node
    if a.op_type != b.op_type or one.weight.dtype != other.weight.dtype:
        return False
    if a.op_type == "MatMul":
        return True
    settings: list[tuple[float | int | None, ...]] = [
        (
            node.attributes.get_float("alpha", 1.0),
            node.attributes.get_float("beta", 1.0),
            node.attributes.get_int("transB", 0),
            input_of(node, 2) is None,
        )
        for node in (a, b)
    ]
    return settings[0] == settings[1]


def _merge(branches: list[_Branch], rewriter: Rewriter) -> None:
    first = branches[0].node
    gemm = first.op_type == "Gemm"
    rows = first.attributes.get_int("transB", 0) if gemm else 0
    axis = 0 if rows else 1
    together = _joined([each.weight for each in branches], axis)
    weight = rewriter.initializer(f"{branches[0].weight.name}/merged", together)
    biased = all(each.bias is not None for each in branches)
    inputs: list[ir.Value | None] = [first.inputs[0], weight]
    bias = None
    if biased:
        vector = _joined([each.bias for each in branches if each.bias is not None], 0)
        bias = rewriter.initializer(f"{_bias_of(branches[0])}/merged", vector)
    if gemm and bias is not None:
        inputs.append(bias)
    (product,) = rewriter.insert_before(first, first.op_type, inputs, dict(first.attributes))
    if bias is not None and not gemm:
        (product,) = rewriter.insert_before(first, "Add", [product, bias])
    sizes = rewriter.initializer(
        f"{first.name}/widths", np.array([each.width for each in branches], np.int64)
    )
    parts = rewriter.insert_before(first, "Split", [product, sizes], {"axis": -1}, num_outputs=len(branches))
    for branch, part in zip(branches, parts, strict=True):
        ends = branch.add if biased and branch.add is not None else branch.node
        rewriter.replace(ends, [part])
        if ends is not branch.node:
            rewriter.erase(branch.node)
    rewriter.drop_orphans()


def _bias_of(branch: _Branch) -> str:
    return str(branch.bias.name) if branch.bias is not None else "bias"


def _joined(values: list[ir.Value], axis: int) -> np.ndarray:
    arrays = [constant_array(value) for value in values]
    return np.concatenate([array for array in arrays if array is not None], axis=axis)
