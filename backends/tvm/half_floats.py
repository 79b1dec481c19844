"""float16 on CPUs: operators compute and keep float32 between them, conversions round.

CPUs of before 2023 have no arithmetic in float16, and our kernels are written for float32. A model in float16
therefore runs as one in float32 whose constants hold float16 numbers (artifacts keep those in 16 bits), with
conversions where it takes inputs and gives outputs. Results are closer to exact arithmetic than float16's
own. An explicit conversion to float16 rounds, and overflows, as it says.
"""

from __future__ import annotations

import onnx_ir as ir

from ...passes.rewriter import Rewriter

_HALF, _WIDE = ir.DataType.FLOAT16, ir.DataType.FLOAT
# What comes out is of a type that an attribute or another input names.
_NAMED = frozenset(
    {
        *("Bernoulli", "BitCast", "Cast", "CastLike", "ConstantOfShape", "DequantizeLinear", "EyeLike"),
        *("Multinomial", "Optional", "QuantizeLinear", "RandomNormal", "RandomNormalLike", "RandomUniform"),
        *("RandomUniformLike", "SequenceEmpty"),
    }
)


def widen_half_floats(model: ir.Model) -> None:
    """Let a model compute in float32 what it has in float16, in place; inputs and outputs keep their type.

    Nodes that depend on nothing but constants stay as they are: what they make is converted.
    """
    graph = model.graph
    made = [value for node in graph for value in node.outputs]
    if not any(value.dtype == _HALF for value in (*made, *graph.inputs)):
        return
    _Widening(model).run()


class _Widening:
    def __init__(self, model: ir.Model):
        self.graph = model.graph
        self.rewriter = Rewriter(model, origin="lowering")
        inputs = set(self.graph.inputs)
        self.known = {value for value in self.graph.initializers.values() if value not in inputs}
        self.turned: set[ir.Value] = set()
        """Values that are float32 now."""
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        for node in list(self.graph):
            if node.inputs and all(value is None or value in self.known for value in node.inputs):
                self.known.update(node.outputs)
            elif node.op_type in _NAMED or node.domain not in ("", "ai.onnx"):
                self._narrow_inputs(node)
            else:
                self._widen(node)
        for index, value in enumerate(self.graph.outputs):
            if value in self.turned:
                self._narrow_output(index, value)

    def _widen(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == _HALF:
                self.rewriter.set_input(node, index, self._cast(node, value, _WIDE))
        for value in node.outputs:
            if value.dtype == _HALF:
                value.type = ir.TensorType(_WIDE)
                self.turned.add(value)

    def _narrow_inputs(self, node: ir.Node) -> None:
        """Give a node float16 where it expects that; a conversion back to float32 has nothing to do."""
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == int(_WIDE):
            return
        for index, value in enumerate(node.inputs):
            if value is not None and value in self.turned:
                self.rewriter.set_input(node, index, self._cast(node, value, _HALF))

    def _cast(self, node: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
        if (value, to) not in self.casts:
            (made,) = self.rewriter.insert_before(node, "Cast", [value], {"to": int(to)})
            made.type, made.shape = ir.TensorType(to), value.shape
            self.casts[value, to] = made
            if value in self.known:
                self.known.add(made)
        return self.casts[value, to]

    def _narrow_output(self, index: int, value: ir.Value) -> None:
        node, name = value.producer(), value.name
        assert node is not None
        (made,) = self.rewriter.insert_after(node, "Cast", [value], {"to": int(_HALF)})
        made.type, made.shape = ir.TensorType(_HALF), value.shape
        value.name = f"{name}_wide"
        made.name = name
        self.graph.outputs[index] = made
