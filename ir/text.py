"""The text form of a graph: one node per line, made for reading, comparing and testing.

```
model 'tiny', opset 23
graph tiny(%x: f32[1,3,8,8]) -> (%y: f32[1,4,8,8])
  weight %w: f32[4,3,3,3]
  %c = Conv(%x, %w) {pads=[1,1,1,1]} : f32[1,4,8,8]
  %y = Relu(%c) : f32[1,4,8,8]
```

The same graph always gives the same text. Names come from files that nobody has vouched for, so everything
that could break a line is escaped.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .account import account
from .provenance import module_path

_PLAIN_NAME = re.compile(r"[\w.:/@$#\-\[\]]+")
_INLINE_ELEMENTS = 8


def to_text(model: ir.Model, *, weights: bool = False, modules: bool = False) -> str:
    """The whole of `model` as text: graph, subgraphs indented under their nodes, functions.

    Args:
        model: left as it is.
        weights: add minimum, maximum, mean and standard deviation of each weight.
        modules: add the torch module that each node was traced from.
    """
    lines = [f"model '{_escaped(model.graph.name or '')}', opset {_opsets(model.opset_imports)}"]
    lines += _graph_lines(model.graph, f"graph {name_text(model.graph.name)}", "", weights, modules)
    for function in model.functions.values():
        title = f"function {_escaped(function.domain)}::{_escaped(function.name)}"
        title += f" <opset {_opsets(function.opset_imports)}>"
        if function.attributes:
            title += f" {{{_attributes(function.attributes)}}}"
        lines += ["", *_graph_lines(function.graph, title, "", weights, modules)]
    return "\n".join(lines) + "\n"


def node_text(node: ir.Node, *, types: bool = True) -> str:
    """One node as one line: `%y = Relu(%x) : f32[1,8]`; subgraphs appear as `{...}`."""
    outputs = ", ".join(name_text(v.name) if v.name else "_" for v in node.outputs)
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    arguments = ", ".join("_" if v is None else name_text(v.name) for v in inputs)
    domain = f"{_escaped(node.domain)}::" if node.domain else ""
    text = f"{outputs} = {domain}{_escaped(node.op_type)}({arguments})"
    if node.attributes:
        text += f" {{{_attributes(node.attributes)}}}"
    if types and any(v.type is not None or v.shape is not None for v in node.outputs):
        text += " : " + ", ".join(type_text(v) for v in node.outputs)
    return text


def type_text(value: ir.Value) -> str:
    """Element type and shape of a value, `f32[1,3,8,8]`; `?` for what is unknown."""
    kind = value.type
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return _escaped(str(kind))
    return _dtype(value.dtype) + _shape(value.shape)


def tensor_text(tensor: ir.TensorProtocol | None, *, elements: bool = True) -> str:
    """A tensor: element type, shape, and its elements if they are few."""
    if tensor is None:
        return "?"
    text = _dtype(tensor.dtype) + _shape(tensor.shape)
    if not elements or tensor.size > _INLINE_ELEMENTS:
        return text
    if tensor.dtype == ir.DataType.STRING:
        return f"{text} {_value(np.asarray(tensor.numpy()).reshape(-1).tolist())}"
    numbers = np.asarray(tensor.numpy()).reshape(-1)
    return f"{text} [{','.join(_number(number) for number in numbers)}]"


def attribute_text(attribute: ir.Attr) -> str:
    """`name=value`; tensors are summarized, subgraphs appear as `{...}`."""
    name = _escaped(attribute.name)
    if attribute.is_ref():
        return f"{name}=@{_escaped(attribute.ref_attr_name or '')}"
    if attribute.value is None:
        return name  # declared by a function, without a default
    return f"{name}={_attribute_value(attribute)}"


def summary(model: ir.Model) -> dict[str, Any]:
    """What `graphwright inspect` shows first, as plain JSON-able data."""
    cost = account(model)
    graphs = [model.graph, *model.graph.subgraphs()]
    operators = Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for g in graphs for n in g)
    return {
        "name": model.graph.name or "",
        "opset_imports": dict(model.opset_imports),
        "inputs": [{"name": v.name, "type": type_text(v)} for v in model.graph.inputs],
        "outputs": [{"name": v.name, "type": type_text(v)} for v in model.graph.outputs],
        "nodes": cost.nodes,
        "operators": dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        "functions": [f"{f.domain}::{f.name}" for f in model.functions.values()],
        "parameters": cost.parameters,
        "parameter_bytes": cost.parameter_bytes,
        "macs": cost.macs,
        "macs_formula": cost.formula,
        "notes": list(cost.notes),
    }


def summary_text(model: ir.Model) -> str:
    """`summary` as an aligned table for people."""
    facts = summary(model)
    macs = f"{facts['macs']:,}" if facts["macs"] is not None else facts["macs_formula"] or "unknown"
    rows = [
        ("model", _escaped(facts["name"])),
        ("opset", _opsets(facts["opset_imports"])),
        *(("input", f"{name_text(v['name'])}: {v['type']}") for v in facts["inputs"]),
        *(("output", f"{name_text(v['name'])}: {v['type']}") for v in facts["outputs"]),
        ("nodes", f"{facts['nodes']:,}"),
        ("operators", ", ".join(f"{_escaped(op)} {n}" for op, n in facts["operators"].items())),
        *(("function", _escaped(name)) for name in facts["functions"]),
        ("parameters", f"{facts['parameters']:,} ({facts['parameter_bytes']:,} bytes)"),
        ("MACs", macs),
        *(("note", _escaped(note)) for note in facts["notes"]),
    ]
    return "\n".join(f"{label:<11}{text}" for label, text in rows) + "\n"


def _graph_lines(graph: ir.Graph, title: str, indent: str, weights: bool, modules: bool) -> Iterator[str]:
    yield f"{indent}{title}({_typed(graph.inputs)}) -> ({_typed(graph.outputs)})"
    indent += "  "
    for value in graph.initializers.values():
        statistics = _statistics(value.const_value) if weights else ""
        yield f"{indent}weight {name_text(value.name)}: {tensor_text(value.const_value)}{statistics}"
    for node in graph:
        path = module_path(node) if modules else None
        yield f"{indent}{node_text(node)}" + (f"  # {_escaped(path)}" if path else "")
        for attribute in node.attributes.values():
            for label, body in bodies(attribute):
                yield from _graph_lines(body, _escaped(label), indent + "  ", weights, modules)


def bodies(attribute: ir.Attr) -> list[tuple[str, ir.Graph]]:
    """Subgraphs in an attribute, each with a label: the attribute's name, indexed if there are several."""
    if attribute.is_ref():
        return []
    if attribute.type == ir.AttributeType.GRAPH:
        return [(attribute.name, attribute.as_graph())]
    if attribute.type == ir.AttributeType.GRAPHS:
        return [(f"{attribute.name}[{i}]", g) for i, g in enumerate(attribute.as_graphs())]
    return []


def _typed(values: Sequence[ir.Value]) -> str:
    return ", ".join(f"{name_text(v.name)}: {type_text(v)}" for v in values)


def _attributes(attributes: Mapping[str, ir.Attr]) -> str:
    return ", ".join(attribute_text(attribute) for _, attribute in sorted(attributes.items()))


def _attribute_value(attribute: ir.Attr) -> str:
    kinds = ir.AttributeType
    if attribute.type == kinds.TENSOR:
        return tensor_text(attribute.value)
    if attribute.type == kinds.TENSORS:
        return "[" + ", ".join(tensor_text(t) for t in attribute.value) + "]"
    if attribute.type in (kinds.GRAPH, kinds.GRAPHS):
        return "{...}"
    return _value(attribute.value)


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return f'"{_escaped(value)}"'
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, (int, float)):
        return _number(value)
    if isinstance(value, Iterable):
        return "[" + ",".join(_value(item) for item in value) + "]"
    return _escaped(str(value))


def _number(number: Any) -> str:
    """Shortest text that a float32 reads back as the same number."""
    if type(number) is float:
        number = np.float32(number) if abs(number) < 3e38 else number
    text = str(number)
    return text.removesuffix(".0") if isinstance(number, np.floating) else text


def _statistics(tensor: ir.TensorProtocol | None) -> str:
    if tensor is None or tensor.size <= _INLINE_ELEMENTS or not tensor.dtype.is_floating_point():
        return ""
    data = np.asarray(tensor.numpy())
    if data.dtype.kind != "f":
        data = data.astype(np.float32)
    mean, deviation = data.mean(dtype=np.float64), data.std(dtype=np.float64)
    low, high = float(data.min()), float(data.max())
    return f" (min {low:.4g}, max {high:.4g}, mean {mean:.4g}, std {deviation:.4g})"


def _opsets(imports: dict[str, int]) -> str:
    parts = [f"{_escaped(domain)} {version}".strip() for domain, version in sorted(imports.items())]
    return ", ".join(parts)


def _dtype(dtype: ir.DataType | None) -> str:
    return "?" if dtype is None or dtype == ir.DataType.UNDEFINED else dtype.short_name()


def _shape(shape: Any) -> str:
    return "[...]" if shape is None else "[" + ",".join(_dim(dim) for dim in shape) + "]"


def _dim(dim: Any) -> str:
    if isinstance(dim, int):
        return str(dim)
    return "?" if dim.value is None else _escaped(dim.value)


def name_text(name: str | None) -> str:
    """The name of a value as it appears in the text: `%x`, quoted where it holds anything unusual."""
    if name and _PLAIN_NAME.fullmatch(name):
        return f"%{name}"
    return f'%"{_escaped(name or "")}"'


def _escaped(text: str) -> str:
    """`text` on one line, without characters that a terminal would act on."""
    text = text.replace('"', '\\"')
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
