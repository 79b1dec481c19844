"""Folds batch normalization, and the scales and shifts that older exporters write for it, into weights.

At inference a BatchNormalization is y = a * x + t per channel. It goes into

- the linear operator *before* it (Conv, ConvTranspose, Gemm, MatMul, MatMul with a bias Add), or else
- the linear operator *behind* it, where that is exact: no padding, or no shift.

A Mul, Div, Add or Sub with one constant per channel behind a linear operator or behind a BatchNormalization
(Caffe2 writes batch norm as BatchNormalization, Mul, Add) is such a map too, and so is one before a linear
operator (pictures are normalized like that). The algebra stands in `affine.py`.

Nothing fires where the intermediate result is read elsewhere or is a graph output, weights are shared or not
constant, BatchNormalization is in training mode, or the new weights would overflow their type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.constants import constant_array
from .affine import (
    LINEAR,
    Affine,
    Linear,
    absorb_before,
    absorb_behind,
    batch_norm_affine,
    channel_vector,
    match_linear,
    replace_constant,
)
from .base import Pass, PassContext
from .leftovers import drop_unread
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule

_MAPS = ("Mul", "Add", "Div", "Sub")


@register
@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch norm and per-channel scales and shifts into the weights of a neighbouring operator.

    y = a * x + t per channel, with a = scale / sqrt(variance + epsilon) and t = bias - a * mean, goes

    1. into the Conv, ConvTranspose, Gemm or MatMul (and its bias Add) before it: W' = a * W, b' = a * b + t;
    2. else into the Conv, Gemm or MatMul behind it, where that is exact: W' = W * a, b' = b + W t, for a Conv
       only without padding or without shift, for a ConvTranspose only without shift.

    Mul, Div, Add and Sub of one constant per channel behind such an operator or behind a batch norm are
    folded alike. So are those before such an operator, but before Gemm and MatMul only scales, and not
    where they may be that of a normalization, which `fuse-normalization` fuses.
    Left alone, with the reason: training mode, parameters or weights that are not constant or are shared,
    intermediate results that are read elsewhere or are graph outputs, weights that would overflow.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rules to a fixpoint."""
        context.rewrite(
            model, BatchNormIntoLinear(), ScaleIntoLinear(), ScaleIntoBatchNorm(), ScaleBeforeLinear()
        )


class BatchNormIntoLinear(Rule):
    """BatchNormalization(L(x)) -> L'(x), and L(BatchNormalization(x)) -> L'(x)."""

    op_types = ("BatchNormalization",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Try the operator before, then the one behind."""
        affine = batch_norm_affine(node)
        if isinstance(affine, str):
            return affine
        source, output = node.inputs[0], node.outputs[0]
        if source is None or _in_function(node, rewriter):
            return "it stands in a function"
        before = _fold_batch_norm_back(node, source, affine, rewriter)
        if before is True:
            return True
        behind = _fold_forward(node, source, output, affine, rewriter)
        if behind is True:
            return True
        return f"{before}; {behind}"


class ScaleIntoLinear(Rule):
    """Mul, Div, Add or Sub of L(x) and a constant -> L'(x), the constant having one number per channel."""

    op_types = _MAPS

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Fold a constant operand into the linear operator that makes the other one."""
        split = _constant_operand(node)
        if split is None or _in_function(node, rewriter):
            return False
        source, array = split
        found = _find_linear(source)
        if found is None or (
            found.op_type == "MatMul" and node.op_type in ("Add", "Sub") and found is source.producer()
        ):
            # An Add right behind a MatMul is its bias: nothing to gain.
            return False
        linear = _linear_before(node, source)
        if isinstance(linear, str):
            return linear
        vector = _channel_constant(array, linear, source)
        if vector is None:
            return "its constant does not hold one number per channel"
        affine = _as_affine(node, vector)
        return affine if isinstance(affine, str) else _fold_back(node, source, linear, affine, rewriter)


class ScaleIntoBatchNorm(Rule):
    """Mul, Div, Add, Sub of one constant per channel behind a BatchNormalization -> its scale and bias."""

    op_types = _MAPS

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Multiply scale and bias of the batch norm, or add to its bias."""
        split = _constant_operand(node)
        if split is None or _in_function(node, rewriter):
            return False
        source, array = split
        batch_norm = source.producer()
        if batch_norm is None or batch_norm.op_type != "BatchNormalization":
            return False
        problem = _reuse_problem(node, source)
        if problem is not None:
            return problem
        old = batch_norm_affine(batch_norm)
        if isinstance(old, str):
            return f"'{batch_norm.name}': {old}"
        rank = None if source.shape is None else len(source.shape)
        vector = channel_vector(array, len(old.a), rank, 1)
        if vector is None:
            return "its constant does not hold one number per channel"
        extra = _as_affine(node, vector)
        if isinstance(extra, str):
            return extra
        stored = _moved_parameters(batch_norm, extra)
        if not all(np.isfinite(array.astype(np.float64)).all() for array in stored):
            return f"the parameters of '{batch_norm.name}' would overflow"
        for index, parameter in enumerate(stored, start=1):
            replace_constant(batch_norm, index, parameter, f"{batch_norm.name}.{index}", rewriter)
        _replace(node, source, rewriter)
        return True


class ScaleBeforeLinear(Rule):
    """L(Mul, Div, Add or Sub of x and a constant) -> L'(x), the constant having one number per channel."""

    op_types = _MAPS
    benefit = 0

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Fold a constant operand into the linear operator that alone reads the result."""
        output = node.outputs[0]
        user = next((user for user, _ in output.uses()), None)
        if user is None or user.op_type not in LINEAR or user.domain not in ("", "ai.onnx"):
            return False
        split = _constant_operand(node)
        if split is None or user.inputs[0] is not output or _in_function(node, rewriter):
            return False
        source, array = split
        convolves = user.op_type in ("Conv", "ConvTranspose")
        if not convolves and (node.op_type in ("Add", "Sub") or _ends_normalization(source)):
            return NoMatch("it may be the bias or the scale of a normalization")
        linear = match_linear(user)
        if isinstance(linear, str):
            return linear
        vector = channel_vector(array, linear.input_channels, _rank(source), 1 if convolves else -1)
        if vector is None or source.shape is None or source.shape != output.shape:
            return "its constant does not hold one number per channel"
        affine = _as_affine(node, vector)
        return affine if isinstance(affine, str) else _fold_forward(node, source, output, affine, rewriter)


def _ends_normalization(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type in ("Div", "Mul", "Cast")


def _moved_parameters(batch_norm: ir.Node, extra: Affine) -> list[np.ndarray]:
    """Scale and bias of a batch norm with another map behind it: a * scale, a * bias + t."""
    stored = []
    for index, shift in ((1, 0.0), (2, extra.t)):
        parameter = constant_array(batch_norm.inputs[index])
        assert parameter is not None
        with np.errstate(all="ignore"):
            stored.append((parameter.astype(np.float64) * extra.a + shift).astype(parameter.dtype))
    return stored


def _fold_batch_norm_back(node: ir.Node, source: ir.Value, affine: Affine, rewriter: Rewriter) -> bool | str:
    linear = _linear_before(node, source)
    if isinstance(linear, str):
        return linear
    if linear.node.op_type == "MatMul" and _rank(source) != 2:
        return f"the channels of '{linear.node.name}' are not its columns"
    return _fold_back(node, source, linear, affine, rewriter)


def _fold_back(
    node: ir.Node, source: ir.Value, linear: Linear, affine: Affine, rewriter: Rewriter
) -> bool | str:
    """Folds the map that `node` computes from `source` into the linear operator before it."""
    producer = source.producer()
    assert producer is not None
    if linear.node.op_type != "MatMul":
        outcome = absorb_behind(linear, affine, rewriter)
        if outcome is True:
            _replace(node, source, rewriter)
        return outcome
    scale_only = Affine(affine.a, np.zeros_like(affine.t))
    dtype = linear.dtype
    if producer is linear.node:
        shift = affine.t.astype(dtype)
    else:
        shift = (affine.a * _bias_of_add(producer, linear) + affine.t).astype(dtype)
    if not np.isfinite(shift.astype(np.float64)).all():
        return f"the shift would overflow {dtype}"
    outcome = absorb_behind(linear, scale_only, rewriter)
    if outcome is not True:
        return outcome
    if producer is not linear.node:
        replace_constant(producer, _constant_index(producer), shift, f"{linear.node.name}.bias", rewriter)
    elif np.any(shift):
        constant = rewriter.initializer(f"{linear.node.name or source.name}.bias", shift)
        (source,) = rewriter.insert_before(node, "Add", [source, constant])
    _replace(node, source, rewriter)
    return True


def _fold_forward(
    node: ir.Node, source: ir.Value, output: ir.Value, affine: Affine, rewriter: Rewriter
) -> bool | str:
    """Folds the batch norm into the linear operator that alone reads it."""
    problem = _reuse_problem(node, output, of="its result")
    if problem is not None:
        return problem
    (user,) = output.consumers()
    if user.op_type not in LINEAR or user.domain not in ("", "ai.onnx") or user.inputs[0] is not output:
        return f"'{user.name}' ({user.op_type}) behind it is no linear operator that reads it as data"
    if user.op_type == "MatMul" and _rank(source) != 2:
        return f"the rows of the weights of '{user.name}' are not its channels"
    linear = match_linear(user)
    if isinstance(linear, str):
        return linear
    outcome = absorb_before(linear, affine, rewriter)
    if outcome is True:
        _replace(node, source, rewriter)
    return outcome


def _replace(node: ir.Node, value: ir.Value, rewriter: Rewriter) -> None:
    """Puts `value` in the place of the first output of `node`, whose constants go with it."""
    operands = list(node.inputs)
    rewriter.replace(node, [value, *[None] * (len(node.outputs) - 1)])
    drop_unread(rewriter, operands)


def _find_linear(source: ir.Value) -> ir.Node | None:
    """The linear operator that makes `source`, directly or as a MatMul with a constant added."""
    producer = source.producer()
    if producer is None or producer.domain not in ("", "ai.onnx"):
        return None
    if producer.op_type in LINEAR:
        return producer
    split = _constant_operand(producer) if producer.op_type == "Add" else None
    inner = None if split is None else split[0].producer()
    return inner if inner is not None and inner.op_type == "MatMul" else None


def _linear_before(node: ir.Node, source: ir.Value) -> Linear | str:
    """The linear operator whose result `node` alone reads, or why there is none to change."""
    found = _find_linear(source)
    if found is None:
        producer = source.producer()
        what = "a graph input" if producer is None else f"'{producer.name}' ({producer.op_type})"
        return f"{what} before it is no linear operator"
    values = [source] if source.producer() is found else [source, found.outputs[0]]
    for value, reader in zip(values, [node, source.producer()], strict=False):
        assert reader is not None
        problem = _reuse_problem(reader, value, of=f"the result of '{found.name}'")
        if problem is not None:
            return problem
    linear = match_linear(found)
    if isinstance(linear, Linear) and source.producer() is not found:
        add = source.producer()
        assert add is not None
        if _channel_constant_of_add(add, linear) is None:
            return f"what '{add.name}' adds does not hold one number per channel"
    return linear


def _reuse_problem(node: ir.Node, value: ir.Value, of: str = "its input") -> str | None:
    """Why `value`, between `node` and a neighbour, must keep existing; None where it may go."""
    if value.is_graph_output():
        return f"{of} is a graph output"
    if len(value.uses()) != 1:
        return f"{of} is {'read by other nodes too' if value.uses() else 'not read'}"
    (user,) = value.consumers()
    producer = value.producer()
    graphs = {user.graph, node.graph} | ({producer.graph} if producer is not None else set())
    return None if len(graphs) == 1 else f"{of} crosses into a subgraph"


def _constant_operand(node: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """The computed and the constant operand of a node with one of each."""
    if len(node.inputs) != 2:
        return None
    index = _constant_index(node)
    other, array = node.inputs[1 - index], constant_array(node.inputs[index])
    return None if array is None or other is None or constant_array(other) is not None else (other, array)


def _constant_index(node: ir.Node) -> int:
    return 0 if constant_array(node.inputs[0]) is not None else 1


def _channel_constant(array: np.ndarray, linear: Linear, source: ir.Value) -> np.ndarray | None:
    """A constant operand beside the result of `linear` as one number per output channel."""
    if linear.node.op_type in ("Conv", "ConvTranspose"):
        return channel_vector(array, linear.output_channels, len(linear.shape), 1)
    rank = 2 if linear.node.op_type == "Gemm" else _rank(source)
    return channel_vector(array, linear.output_channels, rank, -1)


def _channel_constant_of_add(add: ir.Node, linear: Linear) -> np.ndarray | None:
    array = constant_array(add.inputs[_constant_index(add)])
    assert array is not None
    return _channel_constant(array, linear, linear.node.outputs[0])


def _bias_of_add(add: ir.Node, linear: Linear) -> np.ndarray:
    vector = _channel_constant_of_add(add, linear)
    assert vector is not None
    return vector


def _as_affine(node: ir.Node, vector: np.ndarray) -> Affine | str:
    """The map that a Mul, Div, Add or Sub of `vector` computes, or why it is none."""
    ones, zeros = np.ones_like(vector), np.zeros_like(vector)
    if node.op_type == "Add":
        return Affine(ones, vector)
    if node.op_type == "Sub":
        return Affine(ones, -vector) if _constant_index(node) == 1 else Affine(-ones, vector)
    if node.op_type == "Mul":
        return Affine(vector, zeros)
    if _constant_index(node) == 0:
        return "it divides by what is computed"
    with np.errstate(all="ignore"):
        factor = 1 / vector
    return Affine(factor, zeros) if np.isfinite(factor).all() else "it divides by zero or nearly so"


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _in_function(node: ir.Node, rewriter: Rewriter) -> bool:
    """Whether the node is part of a function body, which cannot see new initializers."""
    return rewriter.in_function(node)
