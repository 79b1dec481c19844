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
from .errors import ShapeError

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

    def set_shape(self, value: ir.Value, shape: ir.Shape) -> bool:
        """Merge an inferred shape into `value`; True if that changed it."""
        self._check_no_anonymous_dims(shape)
        existing = value.shape
        if existing is None or len(existing) != len(shape):
            value.shape = shape
            return True
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
        return old if self._is_guess(new) else new

    def _is_guess(self, dim: ir.SymbolicDim) -> bool:
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
    context.reserve_symbol_names(_constraints.collect_symbol_names(model.graph))
    try:
        _library._process_graph(
            context,
            model.graph,
            warn_on_missing=False,
            model_functions=model.functions,
            inference_cache={},
            op_function_cache={},
        )
        _constraints.record_reshape_numel_equalities(context, model.graph)
        _constraints.propagate_symbolic_constraints(context, model.graph)
    except osi.ShapeInferenceError as error:
        detail = f": {error.__cause__}" if error.__cause__ is not None else ""
        raise ShapeError(f"node '{error.node_name}' ({error.op_type}): {error.message}{detail}") from error
    except osi.OpUsageError as error:
        raise ShapeError(f"node '{error.node.name}' ({error.node.op_type}): {error.message}") from error
    except (TypeError, ValueError) as error:
        raise ShapeError(f"shapes cannot be inferred: {error}; `verify` tells what is wrong") from error


def rule(node: ir.Node, opset_imports: Mapping[str, int]) -> Callable[[Any, ir.Node], None] | None:
    """The shape rule for the operator of `node`, None if the library has none."""
    osi.registry.collect()
    domain = node.domain
    return osi.registry.get(domain, node.op_type, version=opset_imports.get(domain, 1))
