"""`onnx-shape-inference` with our own idea of whom to believe when shapes meet.

The library is touched only here and in `shape_rules`. Its engine is entered one level below its
public function, which offers no place for a policy of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import onnx_shape_inference as osi
from onnx_shape_inference import _constraints
from onnx_shape_inference import _engine as _library

from . import shape_rules
from .bodies import nodes_of
from .errors import ShapeError
from .symbols import symbols_of, values_of

shape_rules.install()


class Context(osi.ShapeInferenceContext):
    """Fresh knowledge wins, dimension by dimension; a written dimension stands where inference has none.

    Attributes:
        constants: values that were given a `const_value` for the length of this run.
    """

    def __init__(self, opset_imports: Mapping[str, int], **options: Any):
        super().__init__(opset_imports, policy="override", **options)
        self.constants: list[ir.Value] = []

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
        """Note the contents of a small integer tensor; remembers if the library made a constant of it."""
        was_unknown = value.const_value is None
        super().set_symbolic_value(value, data)
        if was_unknown and value.const_value is not None:
            self.constants.append(value)


def run(context: Context, model: ir.Model) -> None:
    """Infer the whole of `model` in place.

    Raises:
        ShapeError: a rule found a contradiction.
    """
    osi.registry.collect()
    context.reserve_symbol_names(symbols_of(values_of(model)))
    try:
        _library._process_graph(
            context,
            model.graph,
            warn_on_missing=False,
            model_functions=model.functions,
            inference_cache={},
            op_function_cache={},
        )
        _record_reshapes(context, model)
        _constraints.propagate_symbolic_constraints(context, model.graph)
    except osi.ShapeInferenceError as error:
        detail = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise ShapeError(f"node '{error.node_name}' ({error.op_type}): {error.message}{detail}") from error
    except osi.OpUsageError as error:
        raise ShapeError(f"node '{error.node.name}' ({error.node.op_type}): {error.message}") from error
    except (TypeError, ValueError) as error:
        raise ShapeError(f"shapes cannot be inferred: {error}; `verify` tells what is wrong") from error


def _record_reshapes(context: Context, model: ir.Model) -> None:
    """Note that Reshape keeps the number of elements, where that may tell a symbolic dimension."""
    numbers: dict[str, Any] = {}
    for node in nodes_of(model.graph):
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
