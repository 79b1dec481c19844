"""Graphs of any size, made node by node: what an engine's growth is measured on."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

_CHANNELS, _SIZE = 8, 8


def build_synthetic(nodes: int, *, idle: bool = False, seed: int = 0) -> ir.Model:
    """A residual network of about `nodes` nodes.

    Args:
        nodes: How many, roughly; blocks are added until there are as many.
        idle: Leave out what simplification rules rewrite, so that a sweep matches nothing.
        seed: Seed of the weights.

    Returns:
        A model with one input [1, 8, 8, 8]. A block holds Conv, BatchNormalization, Relu, Add and, unless
        `idle`, the Shape/Gather/Concat/Reshape chains, transposes and constant arithmetic of exporters.
    """
    build = _Builder(seed)
    value = build.source
    while len(build.graph) < nodes:
        block = build.conv_block(value)
        if not idle:
            block = build.reshape_chain(build.transposes(block))
        value = build.op("Add", value, build.op("Sigmoid", block))
    value.shape, value.type = build.source.shape, build.source.type
    build.graph.outputs.append(value)
    return build.model


def build_control_flow() -> ir.Model:
    """A model with an If whose condition is known, one whose condition is not, and a Loop.

    Input x [4, 8], output [4, 8]; bodies hold identities, constants and chains that can be simplified, and
    read values of the graph around them.
    """
    return ir.from_onnx_text(_CONTROL_FLOW)


_CONTROL_FLOW = """
<ir_version: 10, opset_import: ["" : 23]>
control_flow (float[4,8] x) => (float[4,8] y)
<bool yes = {1}, int64 times = {3}, float half = {0.5}, int64[2] back = {4, 8}, int64[1] flat = {-1}> {
    known = If (yes) <
        then_branch = taken () => (float[4,8] t) {
            t0 = Transpose <perm = [1, 0]> (x)
            t1 = Transpose <perm = [1, 0]> (t0)
            t = Relu (t1)
        },
        else_branch = other () => (float[4,8] e) { e = Neg (x) }
    >
    sum = ReduceSum <keepdims = 0> (known)
    zero = Constant <value = float {0.0}> ()
    positive = Greater (sum, zero)
    chosen = If (positive) <
        then_branch = up () => (float[4,8] u) {
            u0 = Reshape (known, flat)
            u1 = Reshape (u0, back)
            two = Constant <value = float {2.0}> ()
            u2 = Mul (two, half)
            u = Add (u1, u2)
        },
        else_branch = down () => (float[4,8] d) {
            d0 = Identity (known)
            d = Sub (d0, half)
        }
    >
    y = Loop (times, yes, chosen) <
        body = step (int64 i, bool go, float[4,8] state) => (bool on, float[4,8] next) {
            on = Identity (go)
            s0 = Identity (state)
            s1 = Mul (s0, half)
            s2 = Reshape (s1, flat)
            s3 = Reshape (s2, back)
            next = Add (s3, known)
        }
    >
}
"""


class _Builder:
    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.source = ir.Value(
            name="x",
            shape=ir.Shape([1, _CHANNELS, _SIZE, _SIZE]),
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        self.graph = ir.Graph([self.source], [], nodes=[], opset_imports={"": 23}, name="synthetic")
        self.model = ir.Model(self.graph, ir_version=10, producer_name="synthetic")
        self.scalar = {
            name: self.constant(np.array(value, np.int64), name)
            for name, value in {"zero": 0, "one": 1}.items()
        }
        self.vector = {
            name: self.constant(np.array(value, np.int64), name)
            for name, value in {"axis0": [0], "rest": [_CHANNELS, -1], "back": [_SIZE, _SIZE]}.items()
        }

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        self.graph.register_initializer(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        name = f"{op_type}_{len(self.graph)}"
        node = ir.node(op_type, list(inputs), attributes, name=name)
        node.outputs[0].name = f"{name}:0"
        self.graph.append(node)
        return node.outputs[0]

    def conv_block(self, value: ir.Value) -> ir.Value:
        at = len(self.graph)
        weight = self.rng.standard_normal((_CHANNELS, _CHANNELS, 1, 1)).astype(np.float32) / 3
        conv = self.op("Conv", value, self.constant(weight, f"w{at}"), kernel_shape=[1, 1])
        statistics = [
            self.constant(self.rng.uniform(0.5, 1.5, _CHANNELS).astype(np.float32), f"{name}{at}")
            for name in ("scale", "bias", "mean", "var")
        ]
        return self.op("Relu", self.op("BatchNormalization", conv, *statistics))

    def transposes(self, value: ir.Value) -> ir.Value:
        last = self.op("Transpose", value, perm=[0, 2, 3, 1])
        scale = self.constant(self.rng.uniform(0.5, 1.5, _CHANNELS).astype(np.float32), f"m{len(self.graph)}")
        return self.op("Transpose", self.op("Mul", last, scale), perm=[0, 3, 1, 2])

    def reshape_chain(self, value: ir.Value) -> ir.Value:
        """Flatten the pixels and put them back, with shapes that are computed as exporters do."""
        shape = self.op("Shape", value)
        batch = self.op("Gather", shape, self.scalar["zero"])
        target = self.op(
            "Concat", self.op("Unsqueeze", batch, self.vector["axis0"]), self.vector["rest"], axis=0
        )
        flat = self.op("Reshape", value, target)
        channels = self.op("Gather", shape, self.scalar["one"])
        first = self.op("Unsqueeze", batch, self.vector["axis0"])
        second = self.op("Unsqueeze", channels, self.vector["axis0"])
        back = self.op("Concat", first, second, self.vector["back"], axis=0)
        return self.op("Identity", self.op("Reshape", flat, back))
