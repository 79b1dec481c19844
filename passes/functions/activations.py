"""Activations as parts of fused functions: their lines in a body, their parameters, their operands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from .definitions import DOMAIN, define

SWISH = define(
    """
    Swish (x) => (y)
    {
        gate = Sigmoid (x)
        y = Mul (x, gate)
    }
    """,
    "x sigmoid(x), also called SiLU (Ramachandran, Zoph and Le, 2017)",
)

QUICK_GELU = define(
    """
    QuickGelu <alpha: float = 1.702> (x) => (y)
    {
        number = Constant <value_float: float = @alpha> ()
        factor = CastLike (number, x)
        scaled = Mul (factor, x)
        gate = Sigmoid (scaled)
        y = Mul (x, gate)
    }
    """,
    "x sigmoid(alpha x), the fast approximation of GELU (Hendrycks and Gimpel, 2016)",
)


@dataclass(frozen=True)
class Activation:
    """One call of an activation, as a part of a larger function.

    Attributes:
        name: What it adds to the name of the larger function.
        lines: Its lines in the body; `{x}` and `{y}` stand for argument and result, `{p}` for a prefix that
            keeps names apart.
        parameters: Formal attribute parameters with their defaults in ONNX text (`alpha: float = 1.0`).
        attributes: Values of the parameters, by formal name.
        inputs: Formal names of inputs behind the argument.
        operands: What the call hands to these.
    """

    name: str
    lines: str
    parameters: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    operands: tuple[ir.Value | None, ...] = ()


_PLAIN = ("Relu", "Sigmoid", "Tanh", "HardSwish", "Mish", "Softplus", "Softsign", "Selu")
_WITH_NUMBERS = {
    "LeakyRelu": {"alpha": 0.01},
    "Elu": {"alpha": 1.0},
    "Celu": {"alpha": 1.0},
    "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "ThresholdedRelu": {"alpha": 1.0},
}
ACTIVATION_TYPES = (
    *_PLAIN,
    *_WITH_NUMBERS,
    "Gelu",
    "Clip",
    "PRelu",
    f"{DOMAIN}::Swish",
    f"{DOMAIN}::QuickGelu",
)
"""Operators that `activation_of` knows, as `Rule.op_types` names them."""


def activation_of(node: ir.Node, prefix: str = "activation") -> Activation | None:
    """The activation that `node` applies to its first input; None where it is none.

    Args:
        node: A node.
        prefix: Start of the formal names of its parameters.
    """
    kind = node.op_type
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    if node.domain == DOMAIN:
        return _gated(node, prefix)
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
        return None
    if kind in _PLAIN:
        return Activation(kind, f"{{y}} = {kind} ({{x}})") if not node.attributes else None
    if kind in _WITH_NUMBERS:
        return _with_numbers(node, prefix)
    if kind == "Gelu":
        formal = f"{prefix}_approximate"
        return Activation(
            kind,
            f"{{y}} = Gelu <approximate: string = @{formal}> ({{x}})",
            (f'{formal}: string = "none"',),
            {formal: node.attributes.get_string("approximate", "none")},
        )
    if kind == "Clip":
        names = (f"{prefix}_low", f"{prefix}_high")
        operands = (*node.inputs[1:], *[None] * (3 - len(node.inputs)))
        return Activation(kind, f"{{y}} = Clip ({{x}}, {', '.join(names)})", inputs=names, operands=operands)
    if kind == "PRelu":
        formal = f"{prefix}_slope"
        return Activation(
            kind, f"{{y}} = PRelu ({{x}}, {formal})", inputs=(formal,), operands=(node.inputs[1],)
        )
    return None


def _with_numbers(node: ir.Node, prefix: str) -> Activation:
    defaults = _WITH_NUMBERS[node.op_type]
    given = ", ".join(f"{name}: float = @{prefix}_{name}" for name in defaults)
    return Activation(
        node.op_type,
        f"{{y}} = {node.op_type} <{given}> ({{x}})",
        tuple(f"{prefix}_{name}: float = {default}" for name, default in defaults.items()),
        {f"{prefix}_{name}": node.attributes.get_float(name, value) for name, value in defaults.items()},
    )


def _gated(node: ir.Node, prefix: str) -> Activation | None:
    if node.op_type == SWISH.name:
        return Activation("Swish", "{p}gate = Sigmoid ({x})\n{y} = Mul ({x}, {p}gate)")
    if node.op_type != QUICK_GELU.name:
        return None
    formal = f"{prefix}_alpha"
    return Activation(
        "QuickGelu",
        f"{{p}}number = Constant <value_float: float = @{formal}> ()\n"
        "{p}factor = CastLike ({p}number, x)\n"
        "{p}scaled = Mul ({p}factor, {x})\n{p}gate = Sigmoid ({p}scaled)\n{y} = Mul ({x}, {p}gate)",
        (f"{formal}: float = 1.702",),
        {formal: node.attributes.get_float("alpha", 1.702)},
    )
