"""The part of the verifier that looks at one node: operator, arity, attributes, element types, bodies."""

from __future__ import annotations

import onnx_ir as ir

from .schemas import STANDARD_DOMAINS, OpSpec, Parameter, op_spec


def describe(node: ir.Node | None) -> str:
    """`node 'name' (Op)`, the way every problem names a node."""
    if node is None:
        return "no node"
    domain = f"{node.domain}::" if node.domain else ""
    return f"node '{node.name or '(unnamed)'}' ({domain}{node.op_type})"


class NodeChecker:
    """Checks nodes of one root graph (the main graph or a function) against the standard."""

    def __init__(
        self,
        functions: dict[tuple[str, str, str], ir.Function],
        opset_imports: dict[str, int],
        function: ir.Function | None,
        found: list[str],
    ):
        self._functions = functions
        self._opsets = dict(opset_imports)
        if "ai.onnx" in self._opsets:
            self._opsets.setdefault("", self._opsets["ai.onnx"])
        self._function = function
        self._found = found
        self._specs: dict[tuple[str, str], OpSpec | None] = {}
        self._sound: set[tuple[object, ...]] = set()

    def check(self, node: ir.Node, where: str) -> None:
        """Append what is wrong with `node` alone; `where` ends every line."""
        key = (node.domain, node.op_type)
        spec = self._specs.get(key)
        if spec is None:
            if key not in self._specs:
                spec = self._specs[key] = self._look_up(node, where)
            if spec is None:
                self._call(node, where)
                return
        elif self._functions and node.op_identifier() in self._functions:
            self._call(node, where)
            return
        kind = _kind(node)
        if kind in self._sound:
            return
        before = len(self._found)
        for text in _arity(node, spec):
            self._found.append(f"{describe(node)}: {text}{where}")
        self._attributes(node, spec, where)
        _types(node, spec, where, self._found)
        bodies = _BODIES.get(node.op_type)
        if bodies is not None:
            self._found += [f"{describe(node)}: {text}{where}" for text in bodies(node)]
        elif kind is not None and len(self._found) == before:
            self._sound.add(kind)

    def _look_up(self, node: ir.Node, where: str) -> OpSpec | None:
        """The spec of a standard operator; reports an operator or opset import that does not exist, once."""
        domain = node.domain
        if node.op_identifier() in self._functions:
            return None
        if domain not in self._opsets:
            label = domain or "ai.onnx"
            self._found.append(f"{describe(node)}: no opset import for domain '{label}'{where}")
            return None
        if domain not in STANDARD_DOMAINS:
            return None
        spec = op_spec(domain, node.op_type, self._opsets[domain])
        if spec is None:
            self._found.append(
                f"{describe(node)}: unknown operator in opset {self._opsets[domain]} "
                f"of domain '{domain or 'ai.onnx'}'{where}"
            )
        return spec

    def _call(self, node: ir.Node, where: str) -> None:
        """Check a call of a model function; operators of foreign domains are taken on trust."""
        function = self._functions.get(node.op_identifier())
        if function is None:
            return
        for kind, actual, formal in (
            ("inputs", len(node.inputs), len(function.inputs)),
            ("outputs", len(node.outputs), len(function.outputs)),
        ):
            if actual > formal:
                self._found.append(f"{describe(node)}: {actual} {kind}, its function has {formal}{where}")
        for name, attribute in function.attributes.data.items():
            if attribute.value is None and not attribute.is_ref() and name not in node.attributes:
                self._found.append(f"{describe(node)}: attribute '{name}' is missing{where}")
        for attribute in node.attributes.data.values():
            self._reference(node, attribute, where)

    def _attributes(self, node: ir.Node, spec: OpSpec, where: str) -> None:
        attributes = node.attributes.data
        for name in spec.required_attributes:
            if name not in attributes:
                self._found.append(f"{describe(node)}: attribute '{name}' is missing{where}")
        for name, attribute in attributes.items():
            expected = spec.attributes.get(name)
            if expected is None:
                self._found.append(f"{describe(node)}: no attribute '{name}' in this operator{where}")
            elif attribute.type != expected:
                kinds = f"{attribute.type.name}, not {expected.name}"
                self._found.append(f"{describe(node)}: attribute '{name}' is {kinds}{where}")
            if attribute.ref_attr_name is not None:
                self._reference(node, attribute, where)

    def _reference(self, node: ir.Node, attribute: ir.Attr, where: str) -> None:
        if not attribute.is_ref():
            return
        if self._function is None or attribute.ref_attr_name not in self._function.attributes:
            self._found.append(
                f"{describe(node)}: attribute '{attribute.name}' refers to '{attribute.ref_attr_name}', "
                f"which no enclosing function declares{where}"
            )


def _kind(node: ir.Node) -> tuple[object, ...] | None:
    """All that decides whether a plain node is sound; None where there is more to it."""
    inputs, outputs = node._inputs, node._outputs
    parts: list[object] = [node._op_type, node._domain, len(inputs), len(outputs)]
    for values in (inputs, outputs):
        for value in values:
            kind = None if value is None else value._type
            if type(kind) is ir.TensorType:
                parts.append(kind._dtype._value_)
            else:
                # Of other types nothing is checked; but an input that is left out is not one without a type.
                # Neither equals a number, as element types do.
                parts.append(None if value is None else "")
    for name, attribute in node._attributes.data.items():
        if attribute._ref_attr_name is not None:
            return None
        parts.append(name)
        parts.append(attribute._type._value_)
    return tuple(parts)


def _arity(node: ir.Node, spec: OpSpec) -> list[str]:
    inputs = node.inputs
    count = len(inputs)
    found = []
    if count > spec.max_inputs:
        found.append(f"{count} inputs, at most {spec.max_inputs} allowed")
    if count < spec.min_inputs:
        found.append(f"{count} inputs, at least {spec.min_inputs} needed")
    if None in inputs:
        for index, parameter in enumerate(spec.inputs):
            if parameter.required and index < count and inputs[index] is None:
                found.append(f"input {index} ('{parameter.name}') is required but left out")
    count = len(node.outputs)
    if count > spec.max_outputs:
        found.append(f"{count} outputs, at most {spec.max_outputs} allowed")
    if count < spec.min_outputs:
        found.append(f"{count} outputs, at least {spec.min_outputs} needed")
    return found


def _types(node: ir.Node, spec: OpSpec, where: str, found: list[str]) -> None:
    """Element types against the allowed sets, and against each other where they share a type variable."""
    bound: dict[str, tuple[ir.DataType, str]] = {}
    for values, parameters in ((node.inputs, spec.inputs), (node.outputs, spec.outputs)):
        last = len(parameters) - 1
        for index, value in enumerate(values):
            if value is None or last < 0:
                continue
            kind = value.type
            if type(kind) is not ir.TensorType or kind.dtype == ir.DataType.UNDEFINED:
                continue
            parameter = parameters[index if index < last else last]
            _check_type(node, parameter, value, kind.dtype, bound, where, found)


def _check_type(
    node: ir.Node,
    parameter: Parameter,
    value: ir.Value,
    dtype: ir.DataType,
    bound: dict[str, tuple[ir.DataType, str]],
    where: str,
    found: list[str],
) -> None:
    if parameter.allowed is not None and dtype not in parameter.allowed:
        found.append(
            f"{describe(node)}: '{value.name}' is {dtype.name}, which '{parameter.name}' does not take{where}"
        )
        return
    if parameter.type_name is None:
        return
    known = bound.setdefault(parameter.type_name, (dtype, value.name or ""))
    if known[0] != dtype:
        found.append(
            f"{describe(node)}: '{value.name}' is {dtype.name} but '{known[1]}' is {known[0].name}, "
            f"they must be equal{where}"
        )


def _body(node: ir.Node, name: str) -> ir.Graph | None:
    attribute = node.attributes.get(name)
    if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.GRAPH:
        return None
    return attribute.value


def _if(node: ir.Node) -> list[str]:
    found = []
    for name in ("then_branch", "else_branch"):
        branch = _body(node, name)
        if branch is None:
            continue
        if branch.inputs:
            found.append(f"'{name}' has {len(branch.inputs)} inputs, a branch has none")
        if len(branch.outputs) != len(node.outputs):
            found.append(f"'{name}' gives {len(branch.outputs)} outputs, the node {len(node.outputs)}")
            continue
        found += _same_types(name, branch.outputs, node.outputs)
    return found


def _loop(node: ir.Node) -> list[str]:
    body = _body(node, "body")
    if body is None:
        return []
    carried = max(len(node.inputs) - 2, 0)
    found = []
    if len(body.inputs) != carried + 2:
        found.append(f"'body' takes {len(body.inputs)} inputs, not 2 + {carried} carried")
    if len(body.outputs) != len(node.outputs) + 1:
        found.append(f"'body' gives {len(body.outputs)} outputs, not 1 + {len(node.outputs)} of the node")
    elif not found:
        found += _same_types("body", body.outputs[1:], node.outputs)
    return found


def _scan(node: ir.Node) -> list[str]:
    body = _body(node, "body")
    if body is None:
        return []
    found = []
    if len(body.inputs) != len(node.inputs):
        found.append(f"'body' takes {len(body.inputs)} inputs, the node {len(node.inputs)}")
    if len(body.outputs) != len(node.outputs):
        found.append(f"'body' gives {len(body.outputs)} outputs, the node {len(node.outputs)}")
    elif not found:
        found += _same_types("body", body.outputs, node.outputs)
    return found


def _same_types(name: str, inner, outer) -> list[str]:
    return [
        f"'{name}' gives {a.dtype.name} for '{b.name}', which is {b.dtype.name}"
        for a, b in zip(inner, outer, strict=False)
        if a.dtype is not None and b.dtype is not None and a.dtype != b.dtype
    ]


_BODIES = {"If": _if, "Loop": _loop, "Scan": _scan}
