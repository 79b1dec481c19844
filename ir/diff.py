"""What is different between two graphs, in terms of nodes, shapes, weights and cost."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .account import Account, account
from .clone import clone
from .errors import GraphwrightError, ToolError
from .matching import Matching, attribute_key, same_content
from .provenance import module_path
from .text import attribute_text, name_text, node_text, tensor_text, type_text

_INVENTED = re.compile(r"\b_d\d+\b")
_CHUNK = 1 << 22
_ORIGIN_KEYS = ("graphwright.pass", "graphwright.from")


@dataclass(frozen=True)
class Total:
    """A number about the whole model, before and after; None or text where it is not a plain number."""

    label: str
    before: int | str | None
    after: int | str | None


@dataclass(frozen=True)
class NodeEntry:
    """A node that only one of the graphs has.

    Attributes:
        name, op_type: of the node.
        scope: where it lives, `` for the main graph, `loop/body/` for a subgraph.
        text: the node as one line.
        origin: what it came from: torch module, pass and source nodes; may be empty.
    """

    name: str
    op_type: str
    scope: str
    text: str
    origin: str


@dataclass(frozen=True)
class NodeChange:
    """A node that both graphs have, in different forms; `details` says how, one line each."""

    name: str
    op_type: str
    scope: str
    details: tuple[str, ...]
    before: str
    after: str


@dataclass(frozen=True)
class WeightChange:
    """An initializer that is different; `kind` is added, removed, reshaped, retyped or changed."""

    kind: str
    name: str
    detail: str


@dataclass(frozen=True)
class GraphDiff:
    """The difference between two graphs. Names of nodes and inner values are no difference by themselves.

    Attributes:
        before_name, after_name: of the graphs.
        totals: nodes, parameters, bytes, MACs.
        operators: operators whose number differs: (before, after).
        interface: what differs in inputs, outputs, opsets and functions, one line each.
        added, removed: nodes that one graph lacks.
        modified: nodes that differ.
        weights: initializers that differ.
        renamed: nodes that are the same under another name: (before, after).
    """

    before_name: str
    after_name: str
    totals: tuple[Total, ...]
    operators: dict[str, tuple[int, int]]
    interface: tuple[str, ...]
    added: tuple[NodeEntry, ...]
    removed: tuple[NodeEntry, ...]
    modified: tuple[NodeChange, ...]
    weights: tuple[WeightChange, ...]
    renamed: tuple[tuple[str, str], ...]

    @property
    def changed(self) -> bool:
        """Whether the graphs differ in anything but names of nodes and inner values."""
        return bool(self.interface or self.added or self.removed or self.modified or self.weights)

    def text(self, limit: int | None = None) -> str:
        """The difference for a terminal, in the manner of `diff`; `limit` shortens each list to so many."""
        from .diff_report import as_text

        return as_text(self, limit)

    def to_json(self) -> dict[str, Any]:
        """The difference as plain data."""
        return {"changed": self.changed, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write the difference as .html (one self-contained page), .json, .md or .txt, whole or not at all.

        Raises:
            ToolError: another suffix, or the file cannot be written.
        """
        from .diff_report import as_html, as_markdown, as_text

        writers: dict[str, Callable[[GraphDiff], str]] = {
            ".html": as_html,
            ".json": lambda d: json.dumps(d.to_json(), indent=2) + "\n",
            ".md": as_markdown,
            ".txt": as_text,
        }
        target = Path(path)
        if target.suffix not in writers:
            raise ToolError(f"cannot write a graph diff to '{target}': use one of {', '.join(writers)}")
        text = writers[target.suffix](self)
        partial = target.with_name(f".{target.name}.partial")
        try:
            try:
                partial.write_text(text, encoding="utf-8")
                partial.replace(target)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            raise ToolError(f"cannot write '{target}': {error.strerror}") from error


def diff(before: ir.Model, after: ir.Model) -> GraphDiff:
    """Compare two models; neither is changed.

    Nodes are matched by what they compute, then by their weights, then by name, so that renaming and
    renumbering is no noise. Cost is linear in the size of both.
    """
    before, after = _with_shapes(before), _with_shapes(after)
    match = Matching(before, after)
    weights, noted = _weights(match)
    modified = [change for node in match.nodes for change in _modified(match, node)]
    return GraphDiff(
        before_name=before.graph.name or "",
        after_name=after.graph.name or "",
        totals=_totals(account(before), account(after), before, after),
        operators=_operators(before, after),
        interface=tuple(_interface(match, before, after)),
        added=tuple(_entry(scope, node) for scope, node in match.added),
        removed=tuple(_entry(scope, node) for scope, node in match.removed),
        modified=tuple(modified),
        weights=tuple(weights),
        renamed=tuple(
            (f"{match.scopes[new]}{old.name}", f"{match.scopes[new]}{new.name}")
            for new, old in match.nodes.items()
            if new.name != old.name
        )
        + tuple(noted),
    )


def _with_shapes(model: ir.Model) -> ir.Model:
    """The model itself if its shapes are known, else a copy with as much as can be inferred."""
    if all(v.shape is not None for node in model.graph for v in node.outputs if v.name):
        return model
    from .shapes import infer_shapes

    try:
        copy = clone(model)
        infer_shapes(copy)
    except GraphwrightError:
        return model
    return copy


def _totals(old: Account, new: Account, before: ir.Model, after: ir.Model) -> tuple[Total, ...]:
    return (
        Total("nodes", old.nodes, new.nodes),
        Total("parameters", old.parameters, new.parameters),
        Total("parameter bytes", old.parameter_bytes, new.parameter_bytes),
        Total("constant bytes", _constant_bytes(before), _constant_bytes(after)),
        Total("MACs", *(a.formula if a.macs is None else a.macs for a in (old, new))),
    )


def _constant_bytes(model: ir.Model) -> int:
    """Bytes of everything stored: initializers and tensors in attributes."""
    total = 0
    for graph in model.graphs():
        total += sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
        for node in graph:
            for attribute in node.attributes.data.values():
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    total += attribute.value.nbytes
    return total


def _operators(before: ir.Model, after: ir.Model) -> dict[str, tuple[int, int]]:
    counts = [
        Counter(f"{n.domain}::{n.op_type}" if n.domain else n.op_type for g in m.graphs() for n in g)
        for m in (before, after)
    ]
    names = sorted(counts[0].keys() | counts[1].keys())
    return {n: (counts[0][n], counts[1][n]) for n in names if counts[0][n] != counts[1][n]}


def _interface(match: Matching, before: ir.Model, after: ir.Model) -> Iterator[str]:
    for kind, olds, news in (
        ("input", before.graph.inputs, after.graph.inputs),
        ("output", before.graph.outputs, after.graph.outputs),
    ):
        old_types = {v.name: type_text(v) for v in olds}
        new_types = {v.name: type_text(v) for v in news}
        for name in old_types.keys() - new_types.keys():
            yield f"{kind} {name_text(name)} removed"
        for name, text in new_types.items():
            if name not in old_types:
                yield f"{kind} {name_text(name)} added: {text}"
            elif old_types[name] != text:
                yield f"{kind} {name_text(name)}: {old_types[name]} -> {text}"
        if old_types.keys() == new_types.keys() and list(old_types) != list(new_types):
            yield f"order of {kind}s: {', '.join(map(name_text, new_types))}"
    for old, new in zip(before.graph.outputs, after.graph.outputs, strict=False):
        if old.name == new.name and match.values.get(new) is not old and _rewired(match, old, new):
            yield f"output {name_text(new.name)} comes from another node"
    for domain in sorted(before.opset_imports.keys() | after.opset_imports.keys()):
        versions = before.opset_imports.get(domain), after.opset_imports.get(domain)
        if versions[0] != versions[1]:
            yield f"opset of domain '{domain or 'ai.onnx'}': {versions[0]} -> {versions[1]}"
    for key in before.functions.keys() - after.functions.keys():
        yield f"function {key[0]}::{key[1]} removed"
    for key in after.functions.keys() - before.functions.keys():
        yield f"function {key[0]}::{key[1]} added"


def _entry(scope: str, node: ir.Node) -> NodeEntry:
    path = module_path(node)
    parts = [f"in {path}"] if path else []
    name, sources = (node.metadata_props.get(key) for key in _ORIGIN_KEYS)
    if name:
        parts.append(f"made by {name}" + (f" from {sources}" if sources else ""))
    return NodeEntry(node.name or "", node.op_type, scope, node_text(node), ", ".join(parts))


def _modified(match: Matching, new: ir.Node) -> Iterator[NodeChange]:
    old = match.nodes[new]
    details = [*_attributes(old, new), *_inputs(match, old, new), *_outputs(old, new)]
    if details:
        scope = match.scopes[new]
        yield NodeChange(new.name or "", new.op_type, scope, tuple(details), node_text(old), node_text(new))


def _attributes(old: ir.Node, new: ir.Node) -> Iterator[str]:
    for name in sorted(old.attributes.keys() | new.attributes.keys()):
        a, b = old.attributes.get(name), new.attributes.get(name)
        if a is None and b is not None:
            yield f"attribute {attribute_text(b)} added"
        elif b is None and a is not None:
            yield f"attribute {attribute_text(a)} removed"
        elif a is not None and b is not None and attribute_key(a) != attribute_key(b):
            yield f"attribute {attribute_text(a)} -> {attribute_text(b)}"


def _inputs(match: Matching, old: ir.Node, new: ir.Node) -> Iterator[str]:
    for index in range(max(len(old.inputs), len(new.inputs))):
        a = old.inputs[index] if index < len(old.inputs) else None
        b = new.inputs[index] if index < len(new.inputs) else None
        if a is None and b is None:
            continue
        if a is None or b is None or _rewired(match, a, b):
            texts = ["none" if v is None else name_text(v.name) for v in (a, b)]
            yield f"input {index}: {texts[0]} -> {texts[1]}"


def _rewired(match: Matching, old: ir.Value, new: ir.Value) -> bool:
    """Whether `new` is something else than `old`; a new producer under the old name is told elsewhere."""
    partner = match.values.get(new)
    if partner is not None:
        return partner is not old
    return new.name != old.name


def _outputs(old: ir.Node, new: ir.Node) -> Iterator[str]:
    for index in range(max(len(old.outputs), len(new.outputs))):
        if index >= len(old.outputs) or index >= len(new.outputs):
            yield f"output {index} {'added' if index < len(new.outputs) else 'removed'}"
            continue
        a, b = old.outputs[index], new.outputs[index]
        retyped = a.dtype != b.dtype and None not in (a.dtype, b.dtype)
        if retyped or _shape_differs(a.shape, b.shape):
            yield f"output {index}: {type_text(a)} -> {type_text(b)}"


def _shape_differs(old: ir.Shape | None, new: ir.Shape | None) -> bool:
    """Whether shapes contradict; what is unknown on either side contradicts nothing."""
    if old is None or new is None:
        return False
    if len(old) != len(new):
        return True
    return any(a != b and not _made_up(a) and not _made_up(b) for a, b in zip(old, new, strict=True))


def _made_up(dim: int | ir.SymbolicDim) -> bool:
    """Whether shape inference invented this dimension for lack of knowledge."""
    return not isinstance(dim, int) and (dim.value is None or _INVENTED.search(dim.value) is not None)


def _weights(match: Matching) -> tuple[list[WeightChange], list[tuple[str, str]]]:
    changes: list[WeightChange] = []
    renamed: list[tuple[str, str]] = []
    for scope, before, after in match.pairs:
        kept = set()
        for name, value in after.initializers.items():
            old = match.values.get(value)
            if old is None:
                changes.append(WeightChange("added", f"{scope}{name}", tensor_text(value.const_value)))
                continue
            kept.add(old)
            if old.name != name:
                renamed.append((f"{scope}{old.name}", f"{scope}{name}"))
            changes += _weight_change(f"{scope}{name}", old.const_value, value.const_value)
        for name, value in before.initializers.items():
            if value not in kept:
                changes.append(WeightChange("removed", f"{scope}{name}", tensor_text(value.const_value)))
    return changes, renamed


def _weight_change(
    name: str, old: ir.TensorProtocol | None, new: ir.TensorProtocol | None
) -> list[WeightChange]:
    if old is None or new is None:
        return [] if old is new else [WeightChange("changed", name, "data added or removed")]
    types = f"{tensor_text(old, elements=False)} -> {tensor_text(new, elements=False)}"
    if tuple(old.shape) != tuple(new.shape):
        return [WeightChange("reshaped", name, types)]
    if old.dtype != new.dtype:
        return [WeightChange("retyped", name, types)]
    if same_content(old, new):
        return []
    return [WeightChange("changed", name, f"{tensor_text(new)}{_distance(old, new)}")]


def _distance(old: ir.TensorProtocol, new: ir.TensorProtocol) -> str:
    if not old.dtype.is_floating_point():
        return ""
    a, b = (np.asarray(tensor.numpy()).reshape(-1) for tensor in (old, new))
    largest = 0.0
    for start in range(0, len(a), _CHUNK):
        parts = (np.asarray(array[start : start + _CHUNK], np.float64) for array in (a, b))
        delta = np.abs(np.subtract(*parts))
        largest = max(largest, float(np.max(delta, initial=0.0, where=~np.isnan(delta))))
    return f", largest difference {largest:.3g}"
