"""Symbolic dimensions by name: which a model has, and names that can be computed with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import onnx_ir as ir

from .bodies import bodies_of, nodes_of

_NO_NAME = re.compile(r"[\W_]*")


def free_symbols(dim: ir.SymbolicDim) -> set[str]:
    """Symbols in a dimension; text that is no expression (`batch size`) is a symbol of its own."""
    if dim.value is None:
        return set()
    if dim.value.isidentifier():
        return {dim.value}
    try:
        return set(dim.free_symbols())
    except ValueError:
        return {dim.value}


def symbols_of(values: Iterable[ir.Value]) -> set[str]:
    """All symbols in the shapes of `values`."""
    texts: dict[str | None, ir.SymbolicDim] = {}
    for value in values:
        shape = value.shape
        for dim in () if shape is None else shape.dims:
            if type(dim) is not int:
                texts.setdefault(dim.value, dim)  # type: ignore[union-attr,arg-type]
    return {name for dim in texts.values() for name in free_symbols(dim)}


def input_symbols(model: ir.Model) -> dict[str, str]:
    """Symbolic dimensions of the graph inputs: symbol name -> where it occurs first (`x:0`)."""
    found: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            for name in [] if isinstance(dim, int) else sorted(free_symbols(dim)):
                found.setdefault(name, f"{value.name}:{axis}")
    return found


def values_of(model: ir.Model) -> Iterator[ir.Value]:
    """Inputs and results of the main graph and of every body in it."""
    yield from model.graph.inputs
    for node in nodes_of(model.graph):
        yield from node.outputs
        for body in bodies_of(node):
            yield from body.inputs


def symbol_name(text: str) -> str:
    """The symbol that a dimension called `text` becomes: `batch size` and `batch-size` are `batch_size`."""
    return text if text.isidentifier() else re.sub(r"[^\w.]+", "_", text).strip("_")


def name_input_dims(model: ir.Model) -> None:
    """Give every symbolic dimension of the graph inputs a name that can be computed with, in place.

    A dimension without a name is called after its input (`x_dim0`). Text that only looks like an expression
    (`batch-size`, where nothing is called `batch`) is a name, and becomes `batch_size` everywhere.
    """
    dims = [dim for value in model.graph.inputs for dim in value.shape or () if not isinstance(dim, int)]
    if all(dim.value is not None and dim.value.isidentifier() for dim in dims):
        return
    plain = {dim.value for dim in dims if dim.value is not None and dim.value.isidentifier()}
    renamed: dict[str, str | None] = {}
    for dim in dims:
        text = dim.value
        if text is not None and not (free_symbols(dim) <= plain and dim.value not in free_symbols(dim)):
            renamed[text] = None if _NO_NAME.fullmatch(text) else symbol_name(text)
    for value in values_of(model) if renamed else ():
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape([_renamed(dim, renamed) for dim in value.shape])
    _name_unknown(model)


def _renamed(dim: int | ir.SymbolicDim, names: dict[str, str | None]) -> Any:
    return dim if isinstance(dim, int) or dim.value not in names else names[dim.value]


def _name_unknown(model: ir.Model) -> None:
    inputs = [v for v in model.graph.inputs if v.shape is not None and v.shape.has_unknown_dim()]
    taken = symbols_of(values_of(model)) if inputs else set()
    for value in inputs:
        stem = symbol_name(re.sub(r"\W", "_", value.name or "input"))
        dims: list[Any] = list(value.shape or ())
        for axis, dim in enumerate(dims):
            name = f"{stem}_dim{axis}"
            if not isinstance(dim, int) and dim.value is None and name.isidentifier() and name not in taken:
                dims[axis] = name
        value.shape = ir.Shape(dims)
