"""What the ONNX standard says about an operator, looked up once and kept in the form that checks need.

`onnx.defs` answers every question through bindings that build new Python objects; a verifier that asks about
each node of a graph needs plain tuples and dictionaries instead.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import onnx
import onnx_ir as ir

STANDARD_DOMAINS = frozenset({"", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training"})
"""Domains whose operators `onnx.defs` knows completely; an operator missing there does not exist."""

UNBOUNDED = 2**31 - 1
"""Largest arity: the last formal parameter is variadic."""

_TENSOR_TYPES = {
    "float": ir.DataType.FLOAT,
    "double": ir.DataType.DOUBLE,
    **{
        dtype.name.lower(): dtype
        for dtype in ir.DataType
        if dtype not in (ir.DataType.UNDEFINED, ir.DataType.FLOAT, ir.DataType.DOUBLE)
    },
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One formal input or output.

    Attributes:
        name: as the standard writes it.
        required: it may not be left out.
        type_name: type variable shared with other parameters (`T`), None where every actual may differ.
        allowed: element types, None where the parameter is not (only) a tensor.
    """

    name: str
    required: bool
    type_name: str | None
    allowed: frozenset[ir.DataType] | None


@dataclass(frozen=True, slots=True)
class OpSpec:
    """The checkable part of one operator schema.

    Attributes:
        inputs, outputs: formal parameters; a variadic one is the last and repeats.
        min_inputs, max_inputs, min_outputs, max_outputs: arity, `UNBOUNDED` if variadic.
        attributes: type of each attribute the operator knows.
        required_attributes: those without which it means nothing.
    """

    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]
    min_inputs: int
    max_inputs: int
    min_outputs: int
    max_outputs: int
    attributes: dict[str, ir.AttributeType]
    required_attributes: tuple[str, ...]


def _parameter(formal: onnx.defs.OpSchema.FormalParameter, constraints: dict[str, list[str]]) -> Parameter:
    options = onnx.defs.OpSchema.FormalParameterOption
    names = constraints.get(formal.type_str, [formal.type_str])
    tensors = [name[len("tensor(") : -1] for name in names if name.startswith("tensor(")]
    only_tensors = len(tensors) == len(names) and all(name in _TENSOR_TYPES for name in tensors)
    shares_type = formal.option != options.Variadic or formal.is_homogeneous
    return Parameter(
        name=formal.name,
        required=formal.option == options.Single,
        type_name=formal.type_str if shares_type and formal.type_str in constraints else None,
        allowed=frozenset(_TENSOR_TYPES[name] for name in tensors) if only_tensors else None,
    )


@functools.cache
def op_spec(domain: str, op_type: str, version: int) -> OpSpec | None:
    """What the standard says about `domain::op_type` at opset `version`; None if it has no such operator.

    Operators that were removed from the standard (deprecated at this version) count as absent.
    """
    try:
        schema = onnx.defs.get_schema(op_type, version, "" if domain == "ai.onnx" else domain)
    except onnx.defs.SchemaError:
        return None
    # The standard calls GroupNormalization-18 deprecated, but it is what opsets 18 to 20 have.
    if schema.deprecated and op_type != "GroupNormalization":
        return None
    constraints = {c.type_param_str: list(c.allowed_type_strs) for c in schema.type_constraints}
    return OpSpec(
        inputs=tuple(_parameter(p, constraints) for p in schema.inputs),
        outputs=tuple(_parameter(p, constraints) for p in schema.outputs),
        min_inputs=schema.min_input,
        max_inputs=schema.max_input,
        min_outputs=schema.min_output,
        max_outputs=schema.max_output,
        attributes={
            name: getattr(ir.AttributeType, str(a.type).rpartition(".")[2])
            for name, a in schema.attributes.items()
        },
        required_attributes=tuple(name for name, a in schema.attributes.items() if a.required),
    )
