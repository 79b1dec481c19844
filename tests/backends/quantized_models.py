"""Small QDQ graphs whose output is quantized, for comparing integer kernels with the reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

_DTYPES = {"int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}
"""Of fewer bits than numpy has types for."""


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
        point = np.asarray(zero_point, np.int32).astype(_DTYPES.get(dtype, dtype))
        given = self.constant(np.asarray(scale, np.float32)), self.constant(point)
        return self("DequantizeLinear", x, *given, **attributes)

    def qdq(self, x: ir.Value, scale: float, zero_point: int, dtype: str = "uint8") -> ir.Value:
        return self.dq(self.q(x, scale, zero_point, dtype), scale, zero_point, dtype)

    def weight(
        self, shape: tuple[int, ...], axis: int | None = 0, dtype: str = "int8", zero_point: int = 0
    ) -> tuple[ir.Value, np.ndarray]:
        """A dequantized weight and its scales."""
        info = ml_dtypes.iinfo(_DTYPES.get(dtype, dtype))
        stored = self.random.integers(int(info.min), int(info.max), shape, endpoint=True)
        stored = stored.astype(_DTYPES.get(dtype, dtype))
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


def residual(dtype="uint8", zero_points=(3, 60, 0)) -> ir.Model:
    """Two convolutions, an addition of two scales, pooling and moves, all between quantizers."""
    g = Graph(7)
    x = tensor("x", (1, 8, 14, 14))
    data = g.qdq(x, 0.02, zero_points[0], dtype)
    w1, s1 = g.weight((16, 8, 3, 3))
    first = g("Relu", g("Conv", data, w1, g.bias(s1 * np.float32(0.02), 16), pads=[1, 1, 1, 1]))
    first = g.qdq(first, output_scale(72), zero_points[2], dtype)
    w2, _ = g.weight((16, 16, 3, 3))
    second = g("Conv", first, w2, None, pads=[1, 1, 1, 1])
    wide = output_scale(144, output_scale(72))
    second = g.qdq(second, wide, zero_points[1], dtype)
    total = g.qdq(g("Relu", g("Add", second, first)), wide, zero_points[2], dtype)
    pooled = g("MaxPool", total, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    pooled = g.qdq(pooled, wide, zero_points[2], dtype)
    moved = g("Transpose", pooled, perm=[0, 2, 3, 1])
    moved = g.qdq(moved, wide, zero_points[2], dtype)
    flat = g("Reshape", moved, g.constant(np.array([1, -1])))
    flat = g.qdq(flat, wide, zero_points[2], dtype)
    w3, _ = g.weight((10, 16 * 49))
    return g.model({"x": x}, g("Gemm", flat, w3, None, transB=1))


def layer(groups: int) -> ir.Model:
    """One convolution between quantizers."""
    g = Graph()
    x = tensor("x", (1, 64, 8, 8))
    weight, _ = g.weight((64, 64 // groups, 3, 3))
    y = g("Conv", g.qdq(x, 0.02, 4), weight, None, pads=[1, 1, 1, 1], group=groups)
    return g.model({"x": x}, g.q(g("Relu", y), 0.1, 0))
