"""Small QDQ graphs whose output is quantized, for comparing integer kernels with the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir


@dataclass
class Graph:
    """A graph under construction: constants and nodes by name."""

    seed: int = 0
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: list[ir.Value] = field(default_factory=list)

    def __post_init__(self):
        self.random = np.random.default_rng(self.seed)

    def constant(self, array: Any) -> ir.Value:
        name = f"c{len(self.initializers)}"
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.initializers.append(value)
        return value

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes)
        node.outputs[0].name = f"v{len(self.nodes)}"
        self.nodes.append(node)
        return node.outputs[0]

    def q(self, x: ir.Value, scale: float, zero_point: int, dtype: str = "uint8") -> ir.Value:
        return self(
            "QuantizeLinear", x, self.constant(np.float32(scale)), self.constant(np.array(zero_point, dtype))
        )

    def dq(
        self, x: ir.Value, scale: Any, zero_point: Any, dtype: str = "uint8", **attributes: Any
    ) -> ir.Value:
        given = self.constant(np.asarray(scale, np.float32)), self.constant(np.asarray(zero_point, dtype))
        return self("DequantizeLinear", x, *given, **attributes)

    def qdq(self, x: ir.Value, scale: float, zero_point: int, dtype: str = "uint8") -> ir.Value:
        return self.dq(self.q(x, scale, zero_point, dtype), scale, zero_point, dtype)

    def weight(
        self, shape: tuple[int, ...], axis: int | None = 0, dtype: str = "int8", zero_point: int = 0
    ) -> tuple[ir.Value, np.ndarray]:
        """A dequantized weight and its scales."""
        info = np.iinfo(dtype)
        stored = self.random.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
        count = () if axis is None else (shape[axis],)
        scale = (self.random.random(count) * 0.02 + 0.005).astype(np.float32)
        attributes = {} if axis is None else {"axis": axis}
        return self.dq(self.constant(stored), scale, np.full(count, zero_point), dtype, **attributes), scale

    def bias(self, scale: np.ndarray, count: int) -> ir.Value:
        """An int32 bias with the scale of the sums."""
        stored = self.random.integers(-2000, 2000, count, dtype=np.int32)
        wide = np.broadcast_to(scale, (count,)).astype(np.float32)
        zero = self.constant(np.zeros(count, np.int32))
        return self("DequantizeLinear", self.constant(stored), self.constant(wide), zero, axis=0)

    def model(self, inputs: dict[str, ir.Value], output: ir.Value) -> ir.Model:
        graph = ir.Graph(
            list(inputs.values()),
            [output],
            nodes=self.nodes,
            initializers=self.initializers,
            opset_imports={"": 23},
            name="quantized",
        )
        return ir.Model(graph, ir_version=10)


def tensor(name: str, shape: tuple[int, ...], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def output_scale(terms: int, data: float = 0.02, weight: float = 0.015) -> float:
    """A scale under which few sums of random numbers saturate."""
    return data * weight * 74 * 74 * terms**0.5 / 40
