"""`fuse-squeeze-excite`: channels scaled by what their means say, as one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..ir.static import constant_ints, input_of, known_equal, only_reader, producer_of, rank_of, static_shape
from .base import Pass, PassContext
from .functions import call_function, define
from .functions.activations import Activation, activation_of
from .functions.definitions import KnownFunction
from .registry import register
from .rewriter import Rewriter
from .rules import NoMatch, Rule


@register
@dataclass(frozen=True)
class FuseSqueezeExcite(Pass):
    """Fuse squeeze-and-excitation (Hu, Shen and Sun, 2018) into one call.

    x g(W2 f(W1 mean(x) + b1) + b2) = SqueezeExciteFG(x, W1, b1, W2, b2), the mean over height and width.

    The layers may be 1x1 convolutions, or Gemms (MatMuls, where there is no bias) with the mean flattened
    before and the gate unflattened behind; f and g are any activations. It does not fire where something else
    reads a value in between, where a layer is grouped, or where the mean is not over height and width.
    """

    name: ClassVar[str] = "fuse-squeeze-excite"

    def apply(self, model: ir.Model, context: PassContext) -> None:
        """Drive the rule to a fixpoint."""
        context.rewrite(model, SqueezeExcite())


_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass
class _Block:
    """The nodes of a block from the product upwards, and what a call needs."""

    x: ir.Value
    layers: list[ir.Node]
    activations: list[Activation]


class SqueezeExcite(Rule):
    """x g(W2 f(W1 mean(x) + b1) + b2) = one call."""

    op_types: ClassVar[tuple[str, ...]] = ("Mul",)

    def match_and_rewrite(self, node: ir.Node, rewriter: Rewriter) -> bool | str:
        """Follow the gate up to the mean of the other factor."""
        reason: str = NoMatch("no operand is a gate of the other")
        for gate, x in ((node.inputs[1], node.inputs[0]), (node.inputs[0], node.inputs[1])):
            found = _block(node, gate, x)
            if isinstance(found, _Block):
                return self._fuse(node, found, rewriter)
            if not isinstance(found, NoMatch) or isinstance(reason, NoMatch):
                reason = found
        return reason

    @staticmethod
    def _fuse(node: ir.Node, block: _Block, rewriter: Rewriter) -> bool | str:
        first, second = block.layers
        gemm = first.op_type != "Conv"
        function = _function(gemm, block.activations[0], block.activations[1])
        operands: list[ir.Value | None] = [block.x]
        for layer in (first, second):
            operands += [input_of(layer, index) for index in (1, 2)]
        attributes: dict[str, Any] = {}
        for index, (layer, activation) in enumerate(zip(block.layers, block.activations, strict=True), 1):
            operands += activation.operands
            attributes |= activation.attributes
            if gemm:
                attributes[f"transB{index}"] = int(layer.attributes.get_int("transB", 0))
        while operands[-1] is None:
            operands.pop()
        old = list(node.inputs)
        rewriter.replace(node, call_function(rewriter, node, function, operands, attributes))
        for value in old:
            rewriter.erase_unread(value.producer() if value is not None else None)
        return True


def _block(node: ir.Node, gate: ir.Value | None, x: ir.Value | None) -> _Block | str:
    """The block whose gate is `gate`; a text says why it is none."""
    if gate is None or x is None:
        return NoMatch("an operand is absent")
    nodes: list[ir.Node] = []
    layers: list[ir.Node] = []
    activations: list[Activation] = []
    value: ir.Value | None = gate
    for prefix in ("gate", "inner"):
        value = _through_reshapes(value, nodes)
        producer = value.producer() if value is not None else None
        activation = activation_of(producer, prefix) if producer is not None else None
        if producer is None or activation is None:
            return NoMatch("no activation where one should be")
        nodes.append(producer)
        layer = producer_of(_through_reshapes(producer.inputs[0], nodes), "Conv", "Gemm", "MatMul")
        if layer is None:
            return NoMatch("no layer in front of the activation")
        nodes.append(layer)
        layers.insert(0, layer)
        activations.insert(0, activation)
        value = layer.inputs[0]
    mean = producer_of(_through_reshapes(value, nodes), "GlobalAveragePool", "ReduceMean")
    if mean is None or mean.inputs[0] is not x:
        return NoMatch("what it gates is not what its mean is taken of")
    nodes.append(mean)
    refusal = _refusal(node, x, mean, layers, nodes)
    return refusal or _Block(x, layers, activations)


def _through_reshapes(value: ir.Value | None, nodes: list[ir.Node]) -> ir.Value | None:
    """Look through nodes that add or drop dimensions of size one; the shapes at the ends tell if they do."""
    while (node := producer_of(value, *_RESHAPES)) is not None:
        nodes.append(node)
        value = node.inputs[0]
    return value


def _refusal(
    node: ir.Node, x: ir.Value, mean: ir.Node, layers: list[ir.Node], nodes: list[ir.Node]
) -> str | None:
    shape = x.shape
    if shape is None or len(shape) != 4 or not known_equal(node.outputs[0].shape, shape):
        return "it does not scale images of known shape"
    if mean.op_type == "ReduceMean" and not _over_image(mean):
        return "its mean is not over height and width"
    for each in nodes:
        if not only_reader(each.outputs[0]):
            return f"'{each.outputs[0].name}' has other readers"
        if each.graph is not node.graph:
            return "its parts stand in several graphs"
    if sum(layer.op_type == "Conv" for layer in layers) == 1:
        return "its layers are of different kinds"
    channels = shape[1]
    for layer in layers:
        refusal = _layer_refusal(layer)
        if refusal:
            return refusal
    # What is reshaped in between has one number per image and channel, so its ends tell all.
    for source, rank in ((layers[0].inputs[0], 4), (layers[1].outputs[0], 4)):
        wanted = rank if layers[0].op_type == "Conv" else 2
        dims = list(source.shape) if source is not None and source.shape is not None else []
        if len(dims) != wanted or not known_equal(ir.Shape(dims[:2]), ir.Shape([shape[0], channels])):
            return "its layers do not keep images and channels apart"
    gate = node.inputs[1] if node.inputs[0] is x else node.inputs[0]
    wanted_gate = ir.Shape([shape[0], channels, 1, 1])
    if gate is None or not known_equal(gate.shape, wanted_gate):
        return "its gate has not one number per image and channel"
    return None


def _over_image(mean: ir.Node) -> bool:
    axes = constant_ints(input_of(mean, 1))
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3] and len(axes) == 2


def _layer_refusal(layer: ir.Node) -> str | None:
    if layer.op_type == "Gemm":
        plain = {"alpha": 1.0, "beta": 1.0}
        if any(layer.attributes.get_float(name, value) != value for name, value in plain.items()):
            return f"'{layer.name}' is scaled"
        return f"'{layer.name}' transposes its input" if layer.attributes.get_int("transA", 0) else None
    if layer.op_type == "MatMul":
        return None if rank_of(layer.inputs[1]) == 2 else f"the weights of '{layer.name}' are no matrix"
    weights = static_shape(layer.inputs[1])
    if weights is None or weights[2:] != (1, 1) or rank_of(layer.inputs[0]) != 4:
        return f"'{layer.name}' is no 1x1 convolution"
    if layer.attributes.get_int("group", 1) != 1:
        return f"'{layer.name}' is grouped"
    if any(layer.attributes.get_ints("pads", [])):
        return f"'{layer.name}' is padded"
    return None


def _function(gemm: bool, inner: Activation, gate: Activation) -> KnownFunction:
    """The function for a kind of layers and two activations."""
    name = f"SqueezeExcite{'Gemm' if gemm else ''}{inner.name}{gate.name}"
    inputs = ", ".join(("x", "w1", "b1", "w2", "b2", *inner.inputs, *gate.inputs))
    transposes = ("transB1", "transB2") if gemm else ()
    parameters = ", ".join((*transposes, *inner.parameters, *gate.parameters))
    lines = ["mean = GlobalAveragePool (x)"]
    if gemm:
        lines += ["squeezed = Flatten (mean)", _gemm("reduced", "squeezed", 1)]
    else:
        lines.append("reduced = Conv (mean, w1, b1)")
    lines.append(inner.lines.format(x="reduced", y="hidden", p="inner_"))
    lines.append(_gemm("excited", "hidden", 2) if gemm else "excited = Conv (hidden, w2, b2)")
    lines.append(gate.lines.format(x="excited", y="gate", p="outer_"))
    factor = "gate"
    if gemm:
        lines += ["axes = Constant <value_ints: ints = [2, 3]> ()", "factor = Unsqueeze (gate, axes)"]
        factor = "factor"
    lines.append(f"y = Mul (x, {factor})")
    body = "\n".join(lines)
    return define(
        f"{name} {f'<{parameters}> ' if parameters else ''}({inputs}) => (y)\n{{\n{body}\n}}",
        f"x {gate.name}(W2 {inner.name}(W1 mean(x) + b1) + b2), Hu, Shen and Sun, 2018",
    )


def _gemm(result: str, source: str, index: int) -> str:
    return f"{result} = Gemm <transB: int = @transB{index}> ({source}, w{index}, b{index})"
