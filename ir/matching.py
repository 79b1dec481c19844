"""Which node of one graph is which node of another.

Names lie: exporters number them, passes rename them. So a node is first looked for by what it computes
(operator, attributes, and inputs that are already known to be the same), then by operator and weights, and
only then by its name. One walk in topological order carries the correspondence from the inputs down; it costs
O(nodes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from typing import Any

import numpy as np
import onnx_ir as ir

from .contiguous import bytes_of
from .provenance import module_path
from .text import bodies

_CHUNK = 1 << 24


class Matching:
    """The correspondence between two models, `after` to `before`.

    Attributes:
        nodes: node of the later graph -> node of the earlier graph.
        values: value of the later graph -> value of the earlier graph.
        added, removed: nodes without a partner, each with the scope it lives in (`loop/body/`).
        pairs: graphs that were compared: scope, earlier graph, later graph.
    """

    def __init__(self, before: ir.Model, after: ir.Model):
        self.nodes: dict[ir.Node, ir.Node] = {}
        self.values: dict[ir.Value, ir.Value] = {}
        self.added: list[tuple[str, ir.Node]] = []
        self.removed: list[tuple[str, ir.Node]] = []
        self.pairs: list[tuple[str, ir.Graph, ir.Graph]] = []
        self.scopes: dict[ir.Node, str] = {}
        self._graphs("", before.graph, after.graph)
        for key, function in after.functions.items():
            if key in before.functions:
                scope = f"{function.domain}::{function.name}/"
                self._graphs(scope, before.functions[key].graph, function.graph)

    def _graphs(self, scope: str, before: ir.Graph, after: ir.Graph) -> None:
        self.pairs.append((scope, before, after))
        self._interface(before, after)
        pool = _Pool(before, after)
        late: list[ir.Node] = []
        for node in after:
            partner = pool.take(node, self.values)
            if partner is None:
                late.append(node)
            else:
                self._pair(scope, partner, node)
        for node in late:
            partner = pool.take_by_output(node)
            if partner is None:
                self.added.append((scope, node))
            else:
                self._pair(scope, partner, node)
        self.removed += [(scope, node) for node in pool.rest()]
        self._part_chance_pairs(after)

    def _pair(self, scope: str, before: ir.Node, after: ir.Node) -> None:
        self.nodes[after] = before
        self.scopes[after] = scope
        for old, new in zip(before.outputs, after.outputs, strict=False):
            self.values[new] = old
        old_bodies = {label: body for a in before.attributes.values() for label, body in bodies(a)}
        for attribute in after.attributes.values():
            for label, body in bodies(attribute):
                if label in old_bodies:
                    self._graphs(f"{scope}{after.name}/{label}/", old_bodies[label], body)

    def _interface(self, before: ir.Graph, after: ir.Graph) -> None:
        """Match inputs by name, else by position; weights by name, else by content."""
        named = {value.name: value for value in before.inputs}
        spare = [value for value in before.inputs if value.name not in {v.name for v in after.inputs}]
        for value in after.inputs:
            partner: ir.Value | None = named.get(value.name) or (spare.pop(0) if spare else None)
            if partner is not None:
                self.values[value] = partner
        by_content: dict[Hashable, list[ir.Value]] = {}
        for name, weight in before.initializers.items():
            if name not in after.initializers and weight.const_value is not None:
                by_content.setdefault(content_key(weight.const_value), []).append(weight)
        for name, weight in after.initializers.items():
            partner = before.initializers.get(name)
            if partner is None and by_content and weight.const_value is not None:
                candidates = by_content.get(content_key(weight.const_value))
                partner = candidates.pop(0) if candidates else None
            if partner is not None:
                self.values[weight] = partner

    def _part_chance_pairs(self, after: ir.Graph) -> None:
        """Equal content under different names is a renaming only where the same nodes read it."""
        for weight in after.initializers.values():
            partner = self.values.get(weight)
            if partner is None or partner.name == weight.name:
                continue
            readers = set(partner.consumers())
            if not any(self.nodes.get(reader) in readers for reader in weight.consumers()):
                del self.values[weight]


class _Pool:
    """The nodes of the earlier graph that have no partner yet, found by structure, weights or name."""

    def __init__(self, before: ir.Graph, after: ir.Graph):
        self._free: dict[ir.Node, None] = dict.fromkeys(before)
        self._weights = set(before.initializers.values())
        self._names = {node.name for node in after}
        self._by_name = {node.name: node for node in before if node.name}
        self._by_output: dict[str | None, ir.Node] = {v.name: n for n in before for v in n.outputs if v.name}
        self._by_structure: dict[Hashable, dict[ir.Node, None]] = {}
        self._by_weights: dict[Hashable, dict[ir.Node, None]] = {}
        for node in before:
            structure, weights = self._keys(node, list(node.inputs))
            self._by_structure.setdefault(structure, {})[node] = None
            if weights is not None:
                self._by_weights.setdefault(weights, {})[node] = None

    def _keys(self, node: ir.Node, inputs: list[ir.Value | None]) -> tuple[Hashable, Hashable | None]:
        """Keys by full structure and by weights alone, over values of the earlier graph."""
        head = (node.domain, node.op_type, attributes_key(node))
        weights = tuple(value if value in self._weights else None for value in inputs)
        return (head, *inputs), (head, weights) if any(w is not None for w in weights) else None

    def take(self, node: ir.Node, values: dict[ir.Value, ir.Value]) -> ir.Node | None:
        unknown = object()
        inputs: list[Any] = [None if v is None else values.get(v, unknown) for v in node.inputs]
        structure, weights = self._keys(node, inputs)
        partner = self._pick(self._by_structure.get(structure), node)
        if partner is None and weights is not None:
            partner = self._pick(self._by_weights.get(weights), node)
        if partner is None:
            partner = self._named(node)
        if partner is not None:
            self._free.pop(partner)
        return partner

    def take_by_output(self, node: ir.Node) -> ir.Node | None:
        """The unmatched node that made a value of the same name with the same operator."""
        partner = self._by_output.get(node.outputs[0].name) if node.outputs else None
        if partner is None or partner not in self._free or partner.op_type != node.op_type:
            return None
        self._free.pop(partner)
        return partner

    def rest(self) -> Iterable[ir.Node]:
        return self._free

    def _pick(self, candidates: dict[ir.Node, None] | None, node: ir.Node) -> ir.Node | None:
        if not candidates:
            return None
        namesake = self._by_name.get(node.name) if node.name else None
        if namesake in candidates:
            del candidates[namesake]
            if namesake in self._free:
                return namesake
        for candidate in list(candidates):
            if candidate not in self._free:
                del candidates[candidate]
            elif node.inputs or candidate.name not in self._names:
                del candidates[candidate]
                return candidate
            else:
                break
        return None

    def _named(self, node: ir.Node) -> ir.Node | None:
        partner = self._by_name.get(node.name) if node.name else None
        if partner is None or partner not in self._free or partner.op_type != node.op_type:
            return None
        paths = (module_path(partner), module_path(node))
        return partner if None in paths or paths[0] == paths[1] else None


def attributes_key(node: ir.Node) -> Hashable:
    """Attributes as something that compares and hashes by content; subgraphs count as equal."""
    return frozenset((a.name, attribute_key(a)) for a in node.attributes.data.values())


def attribute_key(attribute: ir.Attr) -> Hashable:
    """One attribute as something that compares and hashes by content."""
    kinds = ir.AttributeType
    if attribute.is_ref():
        return ("@", attribute.ref_attr_name)
    if attribute.type in (kinds.GRAPH, kinds.GRAPHS):
        return attribute.type
    if attribute.type == kinds.TENSOR:
        return content_key(attribute.value)
    if attribute.type == kinds.TENSORS:
        return tuple(content_key(tensor) for tensor in attribute.value)
    value = attribute.value
    return (attribute.type, tuple(value) if isinstance(value, (list, tuple)) else _hashable(value))


def _hashable(value: Any) -> Hashable:
    return value if isinstance(value, Hashable) else str(value)


def content_key(tensor: ir.TensorProtocol) -> Hashable:
    """Element type, shape and a digest of the elements."""
    if tensor.dtype == ir.DataType.STRING:
        return ("string", tuple(tensor.shape), tuple(np.asarray(tensor.numpy()).reshape(-1).tolist()))
    digest = hashlib.blake2b(digest_size=16)
    data = raw_bytes(tensor)
    for start in range(0, len(data), _CHUNK):
        digest.update(data[start : start + _CHUNK].data)
    return (tensor.dtype, tuple(tensor.shape), digest.digest())


def same_content(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    """Whether two tensors hold the same elements, bit by bit; never copies a large one."""
    if a is b:
        return True
    if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
        return False
    if a.dtype == ir.DataType.STRING:
        return bool(np.array_equal(a.numpy(), b.numpy()))
    left, right = raw_bytes(a), raw_bytes(b)
    return all(
        np.array_equal(left[start : start + _CHUNK], right[start : start + _CHUNK])
        for start in range(0, len(left), _CHUNK)
    )


def raw_bytes(tensor: ir.TensorProtocol) -> np.ndarray:
    """The memory of a tensor's array as bytes, without a copy where the array is contiguous."""
    return bytes_of(tensor.numpy())
