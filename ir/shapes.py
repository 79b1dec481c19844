"""Shape propagation with symbolic dimensions, on the IR itself.

The rules per operator come from `onnx-shape-inference`. What is decided here is whom to believe: a shape
that follows from the inputs replaces one written down earlier (a rewrite may have made that stale), while a
written dimension stands where nothing better is known. Contradictions are errors that name the node.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

from .errors import ShapeError
from .shape_checks import contradiction
from .verify_nodes import describe

_MODERN_BROADCASTING = 7
"""Before this opset, operators had attributes that say along which axis to broadcast."""

_SCRATCH_KEY = "pkg.onnx_shape_inference.sym_data"


def infer_shapes(model: ir.Model) -> list[str]:
    """Infer the shape and element type of every value of `model`, in place.

    Symbolic dimensions are carried through arithmetic (`2*batch`), and small integer tensors are followed
    through Shape/Gather/Concat/Reshape chains. What cannot be known gets a fresh symbol (`_d0`) or stays
    unknown.

    Returns:
        What a reader should know, one line each: declared shapes of graph outputs that were wrong and have
        been corrected, operators without a shape rule.

    Raises:
        ShapeError: shapes contradict each other; names the node.
    """
    engine = _engine()
    context = engine.Context(model.opset_imports)
    _name_input_dims(model)
    declared = [(value, value.shape) for value in model.graph.outputs]
    try:
        engine.run(context, model)
    finally:
        _clear_scratch(model, context.constants)
    if model.opset_imports.get("", 0) >= _MODERN_BROADCASTING:
        _check(model.graph.all_nodes())
    return _corrections(declared) + _without_rule(model, engine)


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
    context.reserve_symbol_names(_symbols(v for v in (*node.inputs, *node.outputs) if v is not None))
    try:
        for value in node.inputs:
            if value is not None:
                context.name_anonymous_dims(value)
        rule(context, node)
    except ValueError as error:
        raise ShapeError(f"{describe(node)}: {_reason(error)}") from error
    finally:
        _clear_values([*node.inputs, *node.outputs], context.constants)
    _check([node])
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
    bindings: dict[str, int] = {}
    for key, size in dims.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ShapeError(f"dimension '{key}' must be a positive integer, not {size!r}")
        symbol = _bind_axis(model, key, size) if ":" in key else key
        if symbol is None:
            continue
        if bindings.setdefault(symbol, size) != size:
            raise ShapeError(f"dimension '{symbol}' is given both as {bindings[symbol]} and as {size}")
    known = input_symbols(model)
    for symbol in bindings:
        if symbol not in known:
            names = ", ".join(f"'{name}'" for name in known) or "none"
            raise ShapeError(f"no input has a dimension '{symbol}'; the symbolic ones are: {names}")
    for graph in model.graphs():
        for value in _values(graph):
            if value.shape is not None and not value.shape.is_static():
                value.shape = _substituted(value.shape, bindings)
    return infer_shapes(model)


def input_symbols(model: ir.Model) -> dict[str, str]:
    """Symbolic dimensions of the graph inputs: symbol name -> where it occurs first (`x:0`)."""
    found: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            for name in [] if isinstance(dim, int) else _free(dim):
                found.setdefault(name, f"{value.name}:{axis}")
    return found


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
        used = {name: where for name, where in symbols.items() if name in _free(dim)}
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
    if dim.value is not None and _free(dim) == {dim.value}:
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
            dims.append(dim.evaluate(bindings) if _free(dim) & bindings.keys() else dim)
    return ir.Shape(dims)


def _free(dim: ir.SymbolicDim) -> set[str]:
    """Symbols in a dimension; a name that is no expression (`batch size`) is a symbol of its own."""
    if dim.value is None:
        return set()
    if dim.value.isidentifier():
        return {dim.value}
    try:
        return set(dim.free_symbols())
    except ValueError:
        return {dim.value}


def _symbols(values: Iterable[ir.Value]) -> set[str]:
    return {
        name
        for value in values
        if value.shape is not None
        for dim in value.shape
        if not isinstance(dim, int)
        for name in _free(dim)
    }


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _name_input_dims(model: ir.Model) -> None:
    """Call a nameless dimension of a graph input after the input, rather than `_d0`."""
    taken: set[str] | None = None
    for value in model.graph.inputs:
        if value.shape is None or not value.shape.has_unknown_dim():
            continue
        if taken is None:
            taken = _symbols(v for graph in model.graphs() for v in _values(graph))
        stem = "".join(c if c.isalnum() else "_" for c in value.name or "input")
        dims: list[Any] = list(value.shape)
        for axis, dim in enumerate(dims):
            name = f"{stem}_dim{axis}"
            if dim == ir.SymbolicDim(None) and name.isidentifier() and name not in taken:
                dims[axis] = name
        value.shape = ir.Shape(dims)


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


def _check(nodes: Iterable[ir.Node]) -> None:
    for node in nodes:
        problem = contradiction(node)
        if problem is not None:
            raise ShapeError(f"{describe(node)}: {problem}")


def _without_rule(model: ir.Model, engine: Any) -> list[str]:
    missing: dict[tuple[str, str], ir.Node] = {}
    for node in model.graph.all_nodes():
        if all(value.shape is not None or not value.name for value in node.outputs):
            continue
        known = engine.rule(node, model.opset_imports) or node.op_identifier() in model.functions
        if not known:
            missing.setdefault((node.domain, node.op_type), node)
    return [f"{describe(node)}: no shape rule for this operator" for node in missing.values()]


def _clear_scratch(model: ir.Model, constants: list[ir.Value]) -> None:
    for graph in model.graphs():
        _clear_values(_values(graph), ())
    for function in model.functions.values():
        _clear_values(_values(function.graph), ())
    _clear_values((), constants)


def _clear_values(values: Iterable[ir.Value | None], constants: Iterable[ir.Value]) -> None:
    """Remove what inference noted on values: it would go stale, and be written to files."""
    for value in values:
        if value is not None:
            value.metadata_props.pop(_SCRATCH_KEY, None)
    for value in constants:
        value.const_value = None


def _reason(error: ValueError) -> str:
    cause = error.__cause__
    text = str(getattr(error, "message", "")) or str(error)
    return f"{text}: {cause}" if cause is not None else text


def _engine() -> Any:
    """The shape inference library behind our merge policy; it takes a while to import."""
    from . import shape_engine

    return shape_engine
