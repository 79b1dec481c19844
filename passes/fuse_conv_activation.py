"""`fuse-conv-activation`: convolution or product, what is added to it, and the activation become one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..ir.static import input_of, known_equal, only_reader, producer_of, static_shape
from .base import Pass, PassContext
from .functions import call_function, define
from .functions.activations import ACTIVATION_TYPES, Activation, activation_of
from .functions.definitions import KnownFunction
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class FuseConvActivation(Pass):
    """Fuse convolutions and matrix products with the activation behind them, and a sum in between.

    1. f(Conv(x, w, b)) = ConvF(x, w, b), such as ConvRelu; ConvTranspose, Gemm and MatMul likewise.
    2. f(Conv(x, w, b) + z) = ConvAddF(x, w, b, z), where z does not broadcast the sum: residual connections,
       and the bias of a product.

    f is any activation of one tensor: Relu, Clip, LeakyRelu, PRelu, HardSwish, Swish, Sigmoid, Gelu, ...
    Each pair is a function of the model with its own body. Padding by name (SAME, VALID) is written out. It
    does not fire where something else reads a value in between, or a size that padding depends on is unknown.
    """

    name: ClassVar[str] = "fuse-conv-activation"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rule to a fixpoint."""
        context.rewrite(model, AnchorActivation())


@dataclass(frozen=True)
class _Anchor:
    """An operator that takes an activation: its inputs, and its attributes with their types in ONNX text."""

    inputs: tuple[str, ...]
    attributes: Mapping[str, str]


_CONV = {"dilations": "ints", "group": "int", "kernel_shape": "ints", "pads": "ints", "strides": "ints"}
_ANCHORS = {
    "Conv": _Anchor(("x", "w", "b"), _CONV),
    "ConvTranspose": _Anchor(("x", "w", "b"), {**_CONV, "output_padding": "ints"}),
    "Gemm": _Anchor(("x", "w", "b"), {"alpha": "float", "beta": "float", "transA": "int", "transB": "int"}),
    "MatMul": _Anchor(("x", "w"), {}),
}


class AnchorActivation(Rule):
    """f(anchor(x) + z) = one call."""

    op_types: ClassVar[tuple[str, ...]] = ACTIVATION_TYPES

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Find the anchor above the activation, directly or through a sum."""
        source = node.inputs[0]
        total = producer_of(source, "Add", "Sum")
        if producer_of(source, *_ANCHORS) is None and total is None:
            return NoMatch("no convolution or product in front of it")
        activation = activation_of(node)
        if activation is None or source is None:
            return "it is no activation of one tensor with known parameters"
        if not only_reader(source):
            return f"'{source.name}' has other readers"
        if total is None:
            anchor = producer_of(source, *_ANCHORS)
            assert anchor is not None
            return self._fuse(node, anchor, None, activation, rewriter)
        for index in (0, 1) if len(total.inputs) == 2 else ():
            anchor = producer_of(total.inputs[index], *_ANCHORS)
            if anchor is None or anchor.graph is not node.graph:
                continue
            product, addend = anchor.outputs[0], total.inputs[1 - index]
            if not only_reader(product):
                return f"'{product.name}' has other readers"
            if not known_equal(product.shape, source.shape):
                return "what is added broadcasts the product, or shapes are not known"
            return self._fuse(node, anchor, addend, activation, rewriter)
        return NoMatch("no convolution or product in front of it")

    @staticmethod
    def _fuse(
        node: ir.Node,
        anchor: ir.Node,
        addend: ir.Value | None,
        activation: Activation,
        rewriter: Rewriter,
    ) -> bool | str:
        if anchor.graph is not node.graph:
            return "the activation stands in another graph"
        attributes = _attributes(anchor)
        if isinstance(attributes, str):
            return attributes
        formal = _ANCHORS[anchor.op_type]
        operands = [input_of(anchor, index) for index in range(len(formal.inputs))]
        if addend is not None:
            operands.append(addend)
        operands.extend(activation.operands)
        while operands and operands[-1] is None:
            operands.pop()
        function = _function(anchor.op_type, addend is not None, activation)
        given = {**attributes, **activation.attributes}
        result = call_function(rewriter, node, function, operands, given)
        sources = [node.inputs[0]]
        rewriter.replace(node, result)
        for value in sources:
            rewriter.erase_unread(value.producer() if value is not None else None)
        return True


def _function(op_type: str, adds: bool, activation: Activation) -> KnownFunction:
    """The function for an anchor, with or without sum, and an activation."""
    anchor = _ANCHORS[op_type]
    name = f"{op_type}{'Add' if adds else ''}{activation.name}"
    inputs = ", ".join((*anchor.inputs, *(("z",) if adds else ()), *activation.inputs))
    parameters = ", ".join((*anchor.attributes, *activation.parameters))
    given = ", ".join(f"{each}: {kind} = @{each}" for each, kind in anchor.attributes.items())
    lines = [f"product = {op_type} {f'<{given}> ' if given else ''}({', '.join(anchor.inputs)})"]
    if adds:
        lines.append("total = Add (product, z)")
    lines.append(activation.lines.format(x="total" if adds else "product", y="y", p=""))
    body = "\n".join(lines)
    header = f"{name} {f'<{parameters}> ' if parameters else ''}({inputs}) => (y)"
    formula = f"{op_type}({', '.join(anchor.inputs)})"
    return define(f"{header}\n{{\n{body}\n}}", f"{activation.name}({formula}{' + z' if adds else ''})")


def _attributes(anchor: ir.Node) -> dict[str, Any] | str:
    """Every attribute of the anchor, defaults written out; a text says why that cannot be."""
    found = anchor.attributes
    if any(attribute.is_ref() for attribute in found.values()):
        return "its attributes are parameters of a function"
    if anchor.op_type == "MatMul":
        return {}
    if anchor.op_type == "Gemm":
        return {
            "alpha": found.get_float("alpha", 1.0),
            "beta": found.get_float("beta", 1.0),
            "transA": int(found.get_int("transA", 0)),
            "transB": int(found.get_int("transB", 0)),
        }
    weights = static_shape(anchor.inputs[1])
    if weights is None or len(weights) < 3:
        return "the shape of its weights is not known"
    kernel = list(weights[2:])
    ones = [1] * len(kernel)
    attributes: dict[str, Any] = {
        "dilations": list(found.get_ints("dilations", ones)),
        "group": int(found.get_int("group", 1)),
        "kernel_shape": kernel,
        "strides": list(found.get_ints("strides", ones)),
    }
    if anchor.op_type == "ConvTranspose":
        if "output_shape" in found or found.get_string("auto_pad", "NOTSET") != "NOTSET":
            return "its padding follows from the size of its output"
        attributes["output_padding"] = list(found.get_ints("output_padding", [0] * len(kernel)))
    pads = _pads(anchor, attributes)
    return (
        {**attributes, "pads": pads} if pads is not None else "a size that its padding depends on is unknown"
    )


def _pads(anchor: ir.Node, attributes: Mapping[str, Any]) -> list[int] | None:
    """Padding in numbers, all beginnings and then all ends."""
    kernel, mode = attributes["kernel_shape"], anchor.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        given = anchor.attributes.get_ints("pads", [0] * 2 * len(kernel))
        return list(given) if mode == "NOTSET" else [0] * 2 * len(kernel)
    source = anchor.inputs[0]
    if source is None or source.shape is None:
        return None
    begins, ends = [], []
    sizes = list(source.shape)[2:]
    for size, width, stride, dilation in zip(
        sizes, kernel, attributes["strides"], attributes["dilations"], strict=True
    ):
        reach = dilation * (width - 1) + 1
        if not isinstance(size, int):
            return None
        total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends
