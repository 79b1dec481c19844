"""Shape propagation with symbolic dimensions, on the IR itself.

The rules per operator come from `onnx-shape-inference`. What is decided here is whom to believe: a shape
that follows from the inputs replaces one written down earlier (a rewrite may have made that stale), while a
written dimension stands where nothing better is known. Contradictions are errors that name the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from .bodies import all_graphs, bodies_of, nodes_at, nodes_of
from .errors import ShapeError
from .shape_checks import contradiction
from .symbols import free_symbols, input_symbols, name_input_dims, symbol_name, symbols_of, values_of
from .verify_nodes import describe

_MODERN_BROADCASTING = 7
"""Before this opset, operators had attributes that say along which axis to broadcast."""

_SCRATCH_KEY = "pkg.onnx_shape_inference.sym_data"


def infer_shapes(model: ir.Model) -> list[str]:
    """Infer the shape and element type of every value of `model`, in place.

    Symbolic dimensions are carried through arithmetic (`2*batch`), and small integer tensors are followed
    through Shape/Gather/Concat/Reshape chains. What cannot be known gets a fresh symbol (`_d0`) or stays
    unknown; there a shape that is written already is believed, so whoever makes one stale must clear it.

    Returns:
        What a reader should know, one line each: declared shapes of graph outputs that were wrong and have
        been corrected, operators without a shape rule.

    Raises:
        ShapeError: shapes contradict each other; names the node.
    """
    engine = _engine()
    context = engine.Context(model.opset_imports, calls=bool(model.functions))
    _describe_stored(model)
    name_input_dims(model)
    declared = [(value, value.shape) for value in model.graph.outputs]
    try:
        unchecked = engine.run(context, model)
    finally:
        context.clear()
        if model.functions:
            _clear_scratch(model)
    return _corrections(declared) + _checked(model, unchecked, engine)


def _describe_stored(model: ir.Model) -> None:
    """Give initializers that were made in Python without type or shape those of their tensors."""
    for graph in all_graphs(model):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None:
                continue
            if value.type is None:
                value.type = ir.TensorType(tensor.dtype)
            if value.shape is None:
                value.shape = ir.Shape(tuple(tensor.shape.numpy()))


def infer_node(node: ir.Node, opset_imports: Mapping[str, int]) -> bool:
    """Infer the outputs of one node from its inputs, in place (operators with subgraphs are left alone).

    Returns:
        True if there is a rule for the operator and every output now has a shape.

    Raises:
        ShapeError: the inputs contradict each other.
    """
    engine = _engine()
    rule = engine.rule(node, opset_imports)
    if rule is None or any(a.type == ir.AttributeType.GRAPH for a in node.attributes.values()):
        return False
    context = engine.Context(opset_imports)
    context.reserve_symbol_names(symbols_of(v for v in (*node.inputs, *node.outputs) if v is not None))
    try:
        for value in node.inputs:
            if value is not None:
                context.name_anonymous_dims(value)
        rule(context, node)
    except ValueError as error:
        raise ShapeError(f"{describe(node)}: {_reason(error)}") from error
    finally:
        context.clear()
    _check(node)
    return all(value.shape is not None for value in node.outputs)


def bind_dims(model: ir.Model, dims: Mapping[str, int]) -> list[str]:
    """Give symbolic dimensions of the inputs a size, everywhere, and infer again.

    Args:
        model: changed in place.
        dims: size by symbol (`{"batch": 1}`) or by input and axis (`{"x:0": 1}`).

    Returns:
        The notes of `infer_shapes`.

    Raises:
        ShapeError: no such symbol, input or axis, a size below 1, or a size that contradicts the model.
    """
    name_input_dims(model)
    bindings: dict[str, int] = {}
    for key, size in dims.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ShapeError(f"dimension '{key}' must be a positive integer, not {size!r}")
        symbol = _bind_axis(model, key, size) if ":" in key else symbol_name(key)
        if symbol is None:
            continue
        if bindings.setdefault(symbol, size) != size:
            raise ShapeError(f"dimension '{symbol}' is given both as {bindings[symbol]} and as {size}")
    known = input_symbols(model)
    for symbol in bindings:
        if symbol not in known:
            names = ", ".join(f"'{name}'" for name in known) or "none"
            raise ShapeError(f"no input has a dimension '{symbol}'; the symbolic ones are: {names}")
    for value in values_of(model):
        if value.shape is not None and not value.shape.is_static():
            value.shape = _substituted(value.shape, bindings)
    return infer_shapes(model)


def require_static(model: ir.Model) -> None:
    """Make sure that every tensor of the main graph and its subgraphs has a fixed size.

    Raises:
        ShapeError: names the first value that has none, the node that makes it, the dimension and the remedy.
    """
    symbols = input_symbols(model)
    for value in model.graph.inputs:
        _require_static(value, "graph input", symbols)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name and not isinstance(value.type, (ir.SequenceType, ir.OptionalType)):
                _require_static(value, f"made by {describe(node)}", symbols)


def _require_static(value: ir.Value, origin: str, symbols: Mapping[str, str]) -> None:
    shape = value.shape
    if shape is None:
        raise ShapeError(f"value '{value.name}', {origin}, has an unknown shape{_remedy(symbols)}")
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            continue
        used = {name: where for name, where in symbols.items() if name in free_symbols(dim)}
        what = f"dimension {axis} of value '{value.name}' {shape}, {origin}, is "
        if dim.value is None:
            fix = f"; give it a size with --dim {value.name}:{axis}=1" if value.is_graph_input() else ""
            raise ShapeError(f"{what}unknown{fix or _remedy(symbols)}")
        if used:
            raise ShapeError(f"{what}symbolic ({dim.value}){_remedy(used)}")
        raise ShapeError(f"{what}only known at run time ({dim.value}){_remedy(symbols)}")


def _remedy(symbols: Mapping[str, str]) -> str:
    if not symbols:
        return "; it depends on the data, and no input dimension is left to fix"
    return "; fix it with " + " ".join(f"--dim {name}=1" for name in symbols)


def _bind_axis(model: ir.Model, key: str, size: int) -> str | None:
    """Resolve `input:axis`: the symbol found there, or None when an unnamed dimension has just been set."""
    name, _, axis_text = key.rpartition(":")
    value = next((v for v in model.graph.inputs if v.name == name), None)
    if value is None:
        names = ", ".join(f"'{v.name}'" for v in model.graph.inputs)
        raise ShapeError(f"no input '{name}' (in '{key}'); the inputs are: {names}")
    rank = None if value.shape is None else len(value.shape)
    if rank is None or not axis_text.lstrip("-").isdigit() or not -rank <= int(axis_text) < rank:
        raise ShapeError(f"input '{name}' {value.shape} has no axis '{axis_text}' (in '{key}')")
    assert value.shape is not None
    axis = int(axis_text) % rank
    dim = value.shape[axis]
    if isinstance(dim, int):
        if dim != size:
            raise ShapeError(f"axis {axis} of input '{name}' is {dim}, it cannot become {size}")
        return None
    if free_symbols(dim) == {dim.value}:
        return dim.value
    dims: list[Any] = list(value.shape)
    dims[axis] = size
    value.shape = ir.Shape(dims)
    return None


def _substituted(shape: ir.Shape, bindings: Mapping[str, int]) -> ir.Shape:
    dims: list[Any] = []
    for dim in shape:
        if isinstance(dim, int) or dim.value is None:
            dims.append(dim)
        elif dim.value in bindings:
            dims.append(bindings[dim.value])
        else:
            dims.append(dim.evaluate(bindings) if free_symbols(dim) & bindings.keys() else dim)
    return ir.Shape(dims)


def _corrections(declared: list[tuple[ir.Value, ir.Shape | None]]) -> list[str]:
    notes = []
    for value, before in declared:
        after = value.shape
        if before is None or after is None:
            continue
        clash = len(before) != len(after) or any(
            isinstance(b, int) and a != b for b, a in zip(before, after, strict=True)
        )
        if clash:
            source = f"{describe(value.producer())} makes" if value.producer() else "it is"
            notes.append(f"output '{value.name}' was declared {before}, {source} {after}")
    return notes


def _checked(model: ir.Model, nodes: list[ir.Node], engine: Any) -> list[str]:
    """Look for contradictions at `nodes` and in their bodies; a note for each operator without a rule."""
    modern = model.opset_imports.get("", 0) >= _MODERN_BROADCASTING
    missing: dict[tuple[str, str], ir.Node] = {}
    for node in (inner for outer in nodes for inner in nodes_at(outer)):
        if modern:
            _check(node)
        if all(value.shape is not None or not value.name for value in node.outputs):
            continue
        if engine.rule(node, model.opset_imports) is None and node.op_identifier() not in model.functions:
            missing.setdefault((node.domain, node.op_type), node)
    return [f"{describe(node)}: no shape rule for this operator" for node in missing.values()]


def _check(node: ir.Node) -> None:
    problem = contradiction(node)
    if problem is not None:
        raise ShapeError(f"{describe(node)}: {problem}")


def _clear_scratch(model: ir.Model) -> None:
    """Remove what the library noted on values inside functions and around their calls."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        values = [*graph.inputs, *(value for node in nodes_of(graph) for value in node.outputs)]
        values += [value for node in nodes_of(graph) for body in bodies_of(node) for value in body.inputs]
        for value in values:
            value.metadata_props.pop(_SCRATCH_KEY, None)


def _reason(error: ValueError) -> str:
    cause = error.__cause__
    text = str(getattr(error, "message", "")) or str(error)
    return f"{text}: {cause}" if cause is not None else text


def _engine() -> Any:
    """The shape inference library behind our merge policy; it takes a while to import."""
    from . import shape_engine

    return shape_engine
