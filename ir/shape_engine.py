"""`onnx-shape-inference` with our own idea of whom to believe when shapes meet.

The library is touched only here and in `shape_rules`. Its engine is entered one level below its
public function, which offers no place for a policy of one's own.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, cast

import numpy as np
import onnx_ir as ir
import onnx_shape_inference as osi
from onnx_shape_inference import _constraints
from onnx_shape_inference import _engine as _library

from . import quantized_shapes, shape_memo, shape_rules
from .bodies import nodes_at
from .constants import constant_tensor
from .errors import ShapeError
from .shape_checks import contradiction
from .sweep import nodes_in
from .symbols import symbols_of, values_of

shape_rules.install()
quantized_shapes.install()

# Before this opset, operators had attributes that say along which axis to broadcast.
_SIMPLE_SINCE = 7
_COUNTABLE = frozenset(
    dtype
    for dtype in ir.DataType
    if dtype == ir.DataType.BOOL or (dtype.is_integer() and dtype.bitwidth >= 8)
)


class Context(osi.ShapeInferenceContext):
    """Fresh knowledge wins, dimension by dimension; a written dimension stands where inference has none.

    Args:
        opset_imports: opset versions by domain.
        calls: whether functions are called, into which the library carries elements as metadata.

    Attributes:
        constants: values that were given a `const_value` for the length of this run.
        described: values whose elements were noted in their metadata.
    """

    def __init__(self, opset_imports: Mapping[str, int], *, calls: bool = True, **options: Any):
        super().__init__(opset_imports, policy="override", **options)
        self.constants: list[ir.Value] = []
        self.described: list[ir.Value] = []
        self._calls = calls
        self._stored: dict[ir.Value, list[int] | None] = {}
        self._plain: dict[ir.Value, tuple[int, ...] | bool | None] = {}

    def create_child(
        self, opset_imports: Mapping[str, int] | None = None, *, resolved_attrs: Any = None
    ) -> Context:
        """A context for the body of a function, sharing symbols and the list of constants."""
        child = Context(
            self.opset_imports if opset_imports is None else opset_imports,
            resolved_attrs=resolved_attrs,
            allocator=self._allocator,
        )
        child.constants = self.constants
        child.described = self.described
        return child

    def name_anonymous_dims_in_shape(self, shape: ir.Shape) -> ir.Shape:
        """The library's own method; only, shapes without unknown dimensions are told apart at once."""
        if all(type(dim) is int or dim.value is not None for dim in shape.dims):  # type: ignore[union-attr]
            return shape
        return super().name_anonymous_dims_in_shape(shape)

    def set_shape(self, value: ir.Value, shape: ir.Shape) -> bool:
        """Merge an inferred shape into `value`; True if that changed it."""
        if any(type(dim) is not int and dim.value is None for dim in shape.dims):  # type: ignore[union-attr]
            raise ValueError(f"a shape rule left a dimension of {shape} without a name")
        if any(type(dim) is not int and dim.value.isdigit() for dim in shape.dims):  # type: ignore[union-attr]
            # Some rules write a quotient that comes out even, such as 12*B/B, as the symbol '12'.
            shape = ir.Shape([_number(dim) for dim in shape.dims])
        existing = value.shape
        if existing is None or len(existing) != len(shape):
            value.shape = shape
            return True
        if existing.dims == shape.dims:
            return False
        merged = [self._merge(old, new) for old, new in zip(existing, shape, strict=True)]
        if merged == list(existing):
            return False
        value.shape = ir.Shape(merged)
        return True

    def set_dtype(self, value: ir.Value, dtype: ir.DataType) -> bool:
        """Set the element type of `value`; in a type object of its own, as copies of a model share theirs."""
        if value.dtype == dtype:
            return False
        if value.type is not None:
            value.type = copy.deepcopy(value.type)
        return super().set_dtype(value, dtype)

    def _merge(self, old: int | ir.SymbolicDim, new: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
        if isinstance(new, int):
            return new
        self._maybe_record_anchor_equality(old, new)
        if not isinstance(old, int) and old.value is None:
            return new
        return old if self.is_guess(new) else new

    def is_guess(self, dim: ir.SymbolicDim) -> bool:
        """Whether a dimension rests on a symbol made up for something unknown."""
        text = dim.value or ""
        if text.isidentifier():
            return self.is_generated_symbol(text)
        return any(self.is_generated_symbol(name) for name in dim.free_symbols())

    def set_symbolic_value(self, value: ir.Value, data: list[int | ir.SymbolicDim]) -> None:
        """Note the contents of a small integer tensor; where they are numbers, as a constant too.

        What runs over in the type of the value is not known: the library computes without limits.
        """
        low, high = _limits(value.dtype or ir.DataType.INT64)
        if any(type(element) is int and not low <= element <= high for element in data):
            return
        self._symbolic_values[value] = data
        self._plain.pop(value, None)
        if self._calls:
            self.describe(value)
        shape = value.shape
        if shape is None or len(shape) > 1 or value.const_value is not None:
            return
        if not all(type(element) is int for element in data) or (len(shape) == 0 and not data):
            return
        dtype = value.dtype or ir.DataType.INT64
        # Past the setter, whose protocol check costs more than all the rest.
        value._const_value = _small_tensor(tuple(data) if len(shape) else data[0], dtype)
        self.constants.append(value)

    def describe(self, value: ir.Value) -> None:
        """Note known elements where the library looks for them when it expands a function."""
        known = self._symbolic_values.get(value)
        if known is not None:
            texts = [element if isinstance(element, int) else str(element) for element in known]
            value.metadata_props[osi.SYM_DATA_KEY] = json.dumps(texts)
            self.described.append(value)

    def noted(self, value: ir.Value) -> list[int | ir.SymbolicDim] | None:
        """What a rule said about the elements of `value` in this run."""
        return self._symbolic_values.get(value)

    def elements_of(self, value: ir.Value) -> list[Any] | None:
        """Known elements of a small tensor of integers or truth values, constants included."""
        noted = self._symbolic_values.get(value)
        if noted is not None:
            return noted
        if value not in self._stored:
            tensor = value.const_value if value.producer() is None else constant_tensor(value)
            known = tensor is not None and tensor.dtype in _COUNTABLE
            self._stored[value] = (
                tensor.numpy().reshape(-1).tolist() if known and tensor is not None else None
            )
        return self._stored[value]

    def plain_elements(self, value: ir.Value) -> tuple[int, ...] | bool | None:
        """Known elements of a small tensor, None where they are unknown, False where they are symbolic."""
        if value not in self._plain:
            known = self.elements_of(value)
            plain = known is None or all(type(element) is int for element in known)
            self._plain[value] = (None if known is None else tuple(known)) if plain else False
        return self._plain[value]

    def clear(self) -> None:
        """Take back what was noted on values: it would go stale, and be written to files."""
        for value in self.described:
            value.metadata_props.pop(osi.SYM_DATA_KEY, None)
        for value in self.constants:
            value.const_value = None


def _number(dim: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    return int(dim.value) if not isinstance(dim, int) and dim.value and dim.value.isdigit() else dim


def infer(context: Context, node: ir.Node) -> bool:
    """Infer a node that was met before, or whose shapes are all fixed, without the library's engine.

    Returns:
        True if that was possible; the node was then checked for contradictions as well.
    """
    if node.op_type == "Constant" and node.domain == "":
        return _infer_constant(node)
    key = shape_memo.key_of(node, context)
    if key is None:
        return False
    if shape_memo.recall(key, node, context):
        return True
    found = osi.registry.get("", node.op_type, version=context.get_opset_version(""))
    if found is None:
        return False
    written = [value.shape for value in node.outputs]
    # What holds for the next such node must not stem from what is written on this one.
    for value in node.outputs:
        value.shape = None
    found(context, node)
    if _knew_better(node, written) or contradiction(node) is not None:
        for value, shape in zip(node.outputs, written, strict=True):
            value.shape = shape
        return False
    shape_memo.remember(key, node, context)
    return True


def _knew_better(node: ir.Node, written: list[ir.Shape | None]) -> bool:
    """Whether what was written on the outputs says more than the rule found, or something else."""
    for value, before in zip(node.outputs, written, strict=True):
        found = value.shape
        if before is not None and (found is None or not found.is_static() or _differ(before, found)):
            return True
    return False


def _differ(before: ir.Shape, found: ir.Shape) -> bool:
    return len(before) != len(found) or any(
        type(a) is int and a != b for a, b in zip(before.dims, found.dims, strict=True)
    )


def _infer_constant(node: ir.Node) -> bool:
    value = node.outputs[0]
    tensor = constant_tensor(value)
    if tensor is None:
        return False
    if value.shape is None or value.shape.dims != tensor.shape.dims:
        value.shape = shape_memo.as_shape(cast(ir.Shape, tensor.shape))
    if type(value.type) is not ir.TensorType or value.dtype != tensor.dtype:
        value.type = ir.TensorType(tensor.dtype)
    return True


@functools.cache
def _limits(dtype: ir.DataType) -> tuple[float, float]:
    if not dtype.is_integer() or dtype.itemsize < 1:
        return -math.inf, math.inf
    info = np.iinfo(dtype.numpy())
    return int(info.min), int(info.max)


@functools.lru_cache(maxsize=1024)
def _small_tensor(content: int | tuple[int, ...], dtype: ir.DataType) -> ir.TensorProtocol:
    """A tensor for the length of a run, shared by all values with the same elements."""
    array = np.array(content, dtype.numpy())
    array.flags.writeable = False
    return ir.Tensor(array, dtype)


class _Piece:
    """One node as a graph of its own, for the library's engine."""

    initializers: ClassVar[dict[str, ir.Value]] = {}
    inputs: ClassVar[tuple[ir.Value, ...]] = ()

    def __init__(self, node: ir.Node):
        self._node = node

    def __iter__(self) -> Iterator[ir.Node]:
        yield self._node


def run(context: Context, model: ir.Model) -> list[ir.Node]:
    """Infer the whole of `model` in place.

    Returns:
        Nodes of the main graph that have not been checked for contradictions.

    Raises:
        ShapeError: a rule found a contradiction.
    """
    osi.registry.collect()
    context.reserve_symbol_names(symbols_of(values_of(model)))
    options: dict[str, Any] = {
        "warn_on_missing": False,
        "model_functions": model.functions,
        "inference_cache": {},
        "op_function_cache": {},
    }
    simple = model.opset_imports.get("", 0) >= _SIMPLE_SINCE
    unchecked: list[ir.Node] = []
    try:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and value.shape != tensor.shape:
                value.shape = cast(ir.Shape, tensor.shape)
        for value in model.graph.inputs:
            context.name_anonymous_dims(value)
        for node in nodes_in(model.graph):
            if simple and infer(context, node):
                continue
            unchecked.append(node)
            if rule(node, model.opset_imports) is None:
                for operand in node.inputs:
                    if operand is not None:
                        context.describe(operand)
            _library._process_graph(context, cast(ir.Graph, _Piece(node)), **options)
        _record_reshapes(context, unchecked)
        _constraints.propagate_symbolic_constraints(context, model.graph)
        return unchecked
    except osi.ShapeInferenceError as error:
        detail = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise ShapeError(f"node '{error.node_name}' ({error.op_type}): {error.message}{detail}") from error
    except osi.OpUsageError as error:
        raise ShapeError(f"node '{error.node.name}' ({error.node.op_type}): {error.message}") from error
    except (TypeError, ValueError) as error:
        raise ShapeError(f"shapes cannot be inferred: {error}; `verify` tells what is wrong") from error


def _record_reshapes(context: Context, nodes: list[ir.Node]) -> None:
    """Note that Reshape keeps the number of elements, where that may tell a symbolic dimension."""
    numbers: dict[str, Any] = {}
    for node in (inner for outer in nodes for inner in nodes_at(outer)):
        if node.op_type != "Reshape" or node.domain or not node.inputs or not node.outputs:
            continue
        shapes = [None if value is None else value.shape for value in (node.inputs[0], node.outputs[0])]
        if any(shape is None for shape in shapes) or all(shape.is_static() for shape in shapes if shape):
            continue
        for shape in shapes:
            if str(shape) not in numbers:
                numbers[str(shape)] = _constraints._shape_numel_expr(shape)
        before, after = (numbers[str(shape)] for shape in shapes)
        if before is not None and after is not None and before != after:
            context.add_symbolic_equality(str(before), str(after))


def rule(node: ir.Node, opset_imports: Mapping[str, int]) -> Callable[[Any, ir.Node], None] | None:
    """The shape rule for the operator of `node`, None if the library has none."""
    osi.registry.collect()
    domain = node.domain
    return osi.registry.get(domain, node.op_type, version=opset_imports.get(domain, 1))
