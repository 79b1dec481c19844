"""`fold-constants`: compute ahead of time what does not depend on the inputs."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..ir.bodies import GRAPH_TYPES, graphs_in
from ..ir.constants import constant_array, constant_tensor, evaluate_values, is_deterministic
from ..ir.errors import ModelError
from ..ir.sweep import nodes_in
from ..ir.tensors import tensor_of
from .base import Pass, PassContext
from .constant_budget import Budget, bytes_of
from .functions.definitions import DOMAIN
from .registry import register
from .rewriter import Rewriter
from .rules import Rule

# Their point is to keep data small in the file; backends fold them into kernels.
_KEPT = {"DequantizeLinear", "DynamicQuantizeLinear"}
_QUANTIZED = {
    *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8),
    *(ir.DataType.INT16, ir.DataType.UINT16),
}
"""What a QuantizeLinear of constants (weights that were trained on a grid) is folded to: small numbers."""
STORAGE_KEY = "graphwright.storage"
"""Metadata of other nodes of which the same is true: they unpack weights that are stored in few bits."""
_MAX_ROUNDS = 16
_CONSTANT_FORMS = {
    *("value", "value_float", "value_floats", "value_int", "value_ints", "value_string", "value_strings")
}
# What the rules below start at.
_ROOTS = {"Constant", "CastLike", "Shape", "Size", "Gather"}
# A larger constant that is transposed stays a view of the original, maybe in a file, until it is saved.
_COPIED = 1 << 20


@register
@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant by their results, within a byte budget.

    1. Shape and Size of a static shape (or of the static part that a Shape or Gather picks) become constants.
    2. A node whose inputs are constants is computed by the reference, all of them in one run per round, where
       the result is not random and keeps to the budget.
    3. Constant nodes become initializers; a constant graph output is what a Constant node makes.

    A result may be larger than the constants it is made of (Expand, ConstantOfShape, Tile, a transposed
    shared weight): one value may grow by at most `limit` bytes, and all together by `growth` of the model's
    constant bytes or by `limit`, whichever is more. What is beyond stays computed at run time and is
    reported. DequantizeLinear stays: it keeps weights small. QuantizeLinear of constants makes them small.
    """

    name: ClassVar[str] = "fold-constants"
    settles: ClassVar[bool] = True

    limit: int = 65536
    """Bytes that a single folded value may take beyond the constants that it replaces."""
    growth: float = 0.05
    """How much the constants of the whole model may grow, as a fraction of their bytes before."""

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Alternate between folding and shape inference until nothing new becomes constant."""
        rewriter = context.rewriter(model)
        budget = Budget(model, self.limit, self.growth)
        unfoldable: dict[ir.Node, str] = {}
        for _ in range(_MAX_ROUNDS):
            changed = context.rewrite(model, CastLikeToCast(), FoldShape(), FoldShapeGather())
            with context.timed("folding"):
                changed |= self._fold_round(model, rewriter, budget, unfoldable, context)
            if not changed:
                break
            context.update_shapes(model)
        # Only now: most constants of an exported graph are gone with what read them.
        context.rewrite(model, LiftConstant())
        for node, reason in unfoldable.items():
            if node.graph is not None:
                context.leave(node, reason)

    def may_change(self, model: ir.Model, touched: Collection[ir.Node]) -> bool:
        """Whether a node that was touched depends on constants, or on sizes, only."""
        return any(
            node.graph is not None and (node.op_type in _ROOTS or _reads_constants(node, {}))
            for node in touched
        )

    def _fold_round(
        self,
        model: ir.Model,
        rewriter: Rewriter,
        budget: Budget,
        unfoldable: dict[ir.Node, str],
        context: PassContext,
    ) -> bool:
        foldable = self._foldable(model, rewriter, unfoldable)
        if not foldable:
            return False
        self._respect_budget(foldable, budget, unfoldable)
        wanted = _frontier(foldable)
        if not wanted:
            return False
        for value, array in zip(wanted, _evaluate(model, wanted, unfoldable), strict=True):
            node = value.producer()
            assert node is not None
            if array is None:
                foldable.pop(node, None)
                continue
            rewriter.replace_uses(value, _stored(value, node, array, rewriter))
        rewriter.erase_all([*self._constants_behind(foldable), *foldable])
        folded = sum(node.graph is None for node in foldable)
        rewriter.drop_orphans()
        context.count("folded", folded)
        return folded > 0

    def _constants_behind(self, foldable: dict[ir.Node, None]) -> dict[ir.Node, None]:
        """Constant nodes that foldable nodes read."""
        makers = {v.producer(): None for node in foldable for v in node.inputs if v is not None}
        return {
            node: None for node in makers if node is not None and node not in foldable and self.selects(node)
        }

    def _foldable(
        self, model: ir.Model, rewriter: Rewriter, unfoldable: dict[ir.Node, str]
    ) -> dict[ir.Node, None]:
        """Nodes that depend on constants only, producers first."""
        found: dict[ir.Node, None] = {}
        for graph in _foldable_graphs(model, rewriter):
            for node in nodes_in(graph):
                # The cheapest question that most nodes fail comes first.
                if not _reads_constants(node, found) or _is_kept(node) or node.op_type == "Constant":
                    continue
                if node in unfoldable or not node.outputs or not self.selects(node):
                    continue
                if STORAGE_KEY in node.metadata_props:
                    continue
                if _is_plain(node) and is_deterministic(node):
                    found[node] = None
        return found

    def _respect_budget(
        self,
        foldable: dict[ir.Node, None],
        budget: Budget,
        unfoldable: dict[ir.Node, str],
    ) -> None:
        """Take nodes out of `foldable` until no value and not the whole exceeds its budget."""
        for node in list(foldable):
            if node not in foldable:
                # It depended on one that went.
                continue
            result = sum(bytes_of(output) or 0 for output in node.outputs)
            if result <= self.limit:
                continue
            operands = sum(bytes_of(value) or 0 for value in set(node.inputs) if value is not None)
            if result > operands + self.limit:
                unfoldable[node] = (
                    f"its result takes {result} bytes, {result - operands} more than its inputs"
                )
                del foldable[node]
                _drop_dependents(foldable)
        while True:
            frontier = _frontier(foldable)
            excess = budget.excess(foldable, frontier) if frontier else 0
            if excess <= 0:
                return
            # Many at a time, so that a model full of expansions does not cost a sweep for each.
            for value in sorted(frontier, key=lambda value: -(bytes_of(value) or 0)):
                maker = value.producer()
                if excess <= 0 or maker is None or maker not in foldable:
                    continue
                excess -= bytes_of(value) or 0
                unfoldable[maker] = f"its {bytes_of(value)} bytes would exceed the byte budget of the model"
                del foldable[maker]
            _drop_dependents(foldable)


class LiftConstant(Rule):
    """Constant  =>  initializer."""

    op_types: ClassVar[tuple[str, ...]] = ("Constant",)
    label: ClassVar[str] = "constants lifted"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Move the tensor of a Constant node to the initializers of the main graph."""
        tensor = constant_tensor(node.outputs[0])
        if tensor is None or not isinstance(node.graph, ir.Graph):
            return False
        if rewriter.in_function(node):
            return False
        if node.outputs[0].is_graph_output():
            return "it gives a graph output its name"
        rewriter.lift(node, tensor)
        return True


class CastLikeToCast(Rule):
    """CastLike(x, y)  =>  Cast(x): only the type of y matters, yet it ties constants to inputs."""

    op_types: ClassVar[tuple[str, ...]] = ("CastLike",)
    label: ClassVar[str] = "types folded"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Name the type where it is known."""
        like = node.inputs[1]
        if like is None or like.dtype is None:
            return False
        attributes = {"to": int(like.dtype), **node.attributes}
        (cast,) = rewriter.insert_before(node, "Cast", [node.inputs[0]], attributes)
        rewriter.replace(node, [cast])
        return True


class FoldShape(Rule):
    """Shape(x), Size(x) of static x  =>  constant."""

    op_types: ClassVar[tuple[str, ...]] = ("Shape", "Size")
    label: ClassVar[str] = "shapes folded"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace the node where every dimension it returns is known."""
        source = node.inputs[0]
        if source is None or source.shape is None or rewriter.in_function(node):
            return False
        dims = list(source.shape)
        if node.op_type == "Shape":
            dims = dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
        known = [dim for dim in dims if isinstance(dim, int)]
        if len(known) < len(dims):
            return False
        array = np.array(known if node.op_type == "Shape" else math.prod(known), np.int64)
        return _replace_by_constant(node, array, rewriter)


class FoldShapeGather(Rule):
    """Gather(Shape(x), i) of static dimensions i  =>  constant."""

    op_types: ClassVar[tuple[str, ...]] = ("Gather",)
    label: ClassVar[str] = "shapes folded"

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Replace the node where the picked dimensions are known although others are not."""
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is None or producer.op_type != "Shape" or rewriter.in_function(node):
            return False
        source, picked = producer.inputs[0], constant_array(node.inputs[1], 64)
        if source is None or source.shape is None or picked is None:
            return False
        dims = list(source.shape)
        dims = dims[producer.attributes.get_int("start", 0) : producer.attributes.get_int("end", len(dims))]
        if picked.size and (picked.min() < -len(dims) or picked.max() >= len(dims)):
            return False
        values = [dims[int(i)] for i in picked.reshape(-1)]
        if not all(isinstance(value, int) for value in values):
            return False
        return _replace_by_constant(node, np.array(values, np.int64).reshape(picked.shape), rewriter)


def _is_constant(value: ir.Value) -> bool:
    producer = value._producer
    if producer is None:
        return value.is_initializer() and value.const_value is not None and not value.is_graph_input()
    return producer.op_type == "Constant" and _is_stored(producer)


def _is_stored(node: ir.Node) -> bool:
    """Whether a Constant node says what it holds, as most do: without making a tensor of it."""
    attributes = node.attributes.data
    if len(attributes) != 1 or not attributes.keys() <= _CONSTANT_FORMS:
        return constant_tensor(node.outputs[0]) is not None
    return all(attribute.ref_attr_name is None for attribute in attributes.values())


def _replace_by_constant(node: ir.Node, array: np.ndarray, rewriter: Rewriter) -> bool:
    rewriter.replace(node, [_stored(node.outputs[0], node, array, rewriter)])
    return True


def _foldable_graphs(model: ir.Model, rewriter: Rewriter) -> list[ir.Graph]:
    """All graphs, those of functions included; our own functions hold what a fusion put there."""
    graphs = rewriter.graphs()
    for function in model.functions.values():
        if function.domain != DOMAIN:
            graphs += graphs_in(function.graph)
    return graphs


def _is_kept(node: ir.Node) -> bool:
    if node.op_type == "QuantizeLinear":
        return node.outputs[0].dtype not in _QUANTIZED
    return node.op_type in _KEPT


def _reads_constants(node: ir.Node, found: dict[ir.Node, None]) -> bool:
    for value in node._inputs:
        if value is not None and value._producer not in found and not _is_constant(value):
            return False
    return True


def _is_plain(node: ir.Node) -> bool:
    """Whether a node has no bodies and no attribute that only the caller of its function knows."""
    return not any(
        attribute.type in GRAPH_TYPES or attribute.is_ref() for attribute in node.attributes.data.values()
    )


def _frontier(foldable: dict[ir.Node, None]) -> list[ir.Value]:
    """Values of foldable nodes that something else reads: what has to be stored."""
    return [
        output
        for node in foldable
        for output in node.outputs
        if output.is_graph_output() or any(user not in foldable for user, _ in output.uses())
    ]


def _stored(value: ir.Value, maker: ir.Node, array: np.ndarray, rewriter: Rewriter) -> ir.Value:
    """A constant to stand for `value`: an initializer, or a Constant node where it names a graph output."""
    if not array.flags.c_contiguous and array.nbytes <= _COPIED:
        array = np.ascontiguousarray(array).reshape(array.shape)
    if not value.is_graph_output():
        return rewriter.constant_before(maker, value.name or "folded", array)
    (constant,) = rewriter.insert_before(maker, "Constant", [], {"value": tensor_of(array)})
    return constant


def _drop_dependents(foldable: dict[ir.Node, None]) -> None:
    """Take out nodes that read a node which is no longer foldable."""
    for node in list(foldable):
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and producer.op_type != "Constant" and producer not in foldable:
                del foldable[node]
                break


def _evaluate(
    model: ir.Model, wanted: list[ir.Value], unfoldable: dict[ir.Node, str]
) -> list[np.ndarray | None]:
    """Compute `wanted` in one run; where that fails, one by one, so that one bad node costs only itself."""
    try:
        return list(evaluate_values(model, wanted))
    except ModelError:
        pass
    results: list[np.ndarray | None] = []
    for value in wanted:
        try:
            results.extend(evaluate_values(model, [value]))
        except ModelError as error:
            node = value.producer()
            assert node is not None
            unfoldable[node] = f"the reference cannot compute it: {error}"
            results.append(None)
    return results
