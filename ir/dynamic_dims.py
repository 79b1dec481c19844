"""Names for the dimensions that a traced model leaves open."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir

from .bodies import all_graphs


def without_names(dynamic_shapes: Any) -> Any:
    """A dynamic-shapes specification with `torch.export.Dim.DYNAMIC` in the place of plain names."""
    import torch

    def convert(spec: Any) -> Any:
        if isinstance(spec, str):
            return torch.export.Dim.DYNAMIC
        if isinstance(spec, Mapping):
            return {key: convert(each) for key, each in spec.items()}
        if isinstance(spec, (tuple, list)):
            return type(spec)(convert(each) for each in spec)
        return spec

    return convert(dynamic_shapes)


def dim_names(
    program: Any, forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> dict[str, str]:
    """Which symbol of an exported program (`s77`) stands for which named dimension (`batch`)."""
    if dynamic_shapes is None:
        return {}
    inputs = _named_arguments(forward, args, kwargs)
    specs = _leaf_specs(inputs, dynamic_shapes)
    user_inputs = [spec.arg for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    if len(specs) != len(user_inputs):
        return {}
    names: dict[str, str] = {}
    for argument, spec in zip(user_inputs, specs, strict=True):
        node = placeholders.get(getattr(argument, "name", ""))
        if node is None or not hasattr(node.meta.get("val"), "shape"):
            continue
        for axis, dim in _axes(spec):
            symbol = str(node.meta["val"].shape[axis])
            name = dim if isinstance(dim, str) else getattr(dim, "__name__", None)
            if name is not None and symbol.isidentifier():
                names.setdefault(symbol, name)
    return names


def rename_dims(model: ir.Model, names: Mapping[str, str]) -> None:
    """Renames symbols in every shape of a model, also inside expressions."""
    if not names:
        return
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, names))})\b")
    for graph in all_graphs(model):
        for value in (
            *graph.inputs,
            *graph.initializers.values(),
            *(v for node in graph for v in node.outputs),
        ):
            if value.shape is None:
                continue
            for axis, dim in enumerate(value.shape):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None and pattern.search(dim.value):
                    value.shape[axis] = pattern.sub(lambda match: names[match[0]], dim.value)


def _named_arguments(forward: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Arguments in the order in which `torch.export` flattens them: keywords last, as given."""
    parameters = list(inspect.signature(forward).parameters.values())
    named: list[tuple[str, Any]] = []
    rest = list(args)
    for parameter in parameters:
        if not rest:
            break
        if parameter.kind is parameter.VAR_POSITIONAL:
            named.append((parameter.name, tuple(rest)))
            rest = []
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            named.append((parameter.name, rest.pop(0)))
    return named + list(kwargs.items())


def _leaf_specs(inputs: list[tuple[str, Any]], dynamic_shapes: Any) -> list[Any]:
    specs: list[Any] = []
    for index, (name, value) in enumerate(inputs):
        if isinstance(dynamic_shapes, Mapping):
            spec = dynamic_shapes.get(name)
        else:
            spec = dynamic_shapes[index] if index < len(dynamic_shapes) else None
        specs.extend(_flatten(value, spec))
    return specs


def _flatten(value: Any, spec: Any) -> Iterator[Any]:
    from torch.utils import _pytree

    if isinstance(value, (tuple, list)):
        for index, each in enumerate(value):
            inside = spec[index] if isinstance(spec, (tuple, list)) and index < len(spec) else None
            yield from _flatten(each, inside)
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _flatten(each, spec.get(key) if isinstance(spec, Mapping) else None)
    elif _pytree.tree_is_leaf(value):
        yield spec
    else:
        # A registered container: its inner layout is not known here, so its dimensions keep torch's symbols.
        yield from (None for _ in _pytree.tree_leaves(value))


def _axes(spec: Any) -> Iterator[tuple[int, Any]]:
    if isinstance(spec, Mapping):
        yield from spec.items()
    elif isinstance(spec, (tuple, list)):
        yield from enumerate(spec)
