"""A model over 2 GB, written straight to its external file: never more than one tensor in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

_ROWS = 1024


def write_large(path: Path, *, vocabulary: int = 65536, width: int = 4096, layers: int = 20) -> None:
    """Write an embedding and `layers` residual linear layers, 2.4 GB by default, as `path` and `path.data`.

    Input `ids` [batch, length] int64 with symbolic sizes, output [batch, length, width] float. As exporters
    write them, weights are stored [out, in] and transposed in the graph, and shapes are computed.

    Args:
        path: file to write; its folder must exist.
        vocabulary: rows of the embedding.
        width: of the tokens.
        layers: how many linear layers.
    """
    shapes: dict[str, tuple[int, ...]] = {"embedding": (vocabulary, width)}
    for index in range(layers):
        shapes |= {f"layers.{index}.weight": (width, width), f"layers.{index}.bias": (width,)}
    data = path.with_name(path.name + ".data")
    offsets = _write_weights(data, shapes)
    ids = ir.Value(name="ids", shape=ir.Shape(["batch", "length"]), type=ir.TensorType(ir.DataType.INT64))
    graph = ir.Graph([ids], [], nodes=[], opset_imports={"": 20}, name="large")
    weights = {}
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        tensor = ir.ExternalTensor(
            data.name, offsets[name], size, ir.DataType.FLOAT, shape=ir.Shape(shape), name=name
        )
        weights[name] = ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT), const_value=tensor
        )
        graph.register_initializer(weights[name])
    _add_nodes(graph, ids, weights, width, layers)
    ir.save(ir.Model(graph, ir_version=10, producer_name="graphwright-zoo"), path)


def _add_nodes(graph: ir.Graph, ids: ir.Value, weights: dict[str, ir.Value], width: int, layers: int) -> None:
    def op(op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        name = f"{op_type}_{len(graph)}"
        node = ir.node(op_type, list(inputs), attributes, name=name)
        node.outputs[0].name = f"{name}:0"
        graph.append(node)
        return node.outputs[0]

    def constant(values: list[int] | int) -> ir.Value:
        array = np.array(values, np.int64)
        value = op("Constant", value=ir.tensor(array))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.INT64)
        return value

    state = op("Gather", weights["embedding"], ids, axis=0)
    for index in range(layers):
        weight = op("Transpose", weights[f"layers.{index}.weight"], perm=[1, 0])
        mixed = op("Add", op("MatMul", state, weight), weights[f"layers.{index}.bias"])
        shape = op("Shape", state)
        sizes = [op("Unsqueeze", op("Gather", shape, constant(axis)), constant([0])) for axis in (0, 1)]
        target = op("Concat", *sizes, constant([width // 64]), constant([64]), axis=0)
        heads = op("Relu", op("Reshape", mixed, target))
        back = op("Concat", *sizes, constant([width]), axis=0)
        state = op("Add", state, op("Identity", op("Reshape", heads, back)))
    state.name = "output"
    state.shape = ir.Shape(["batch", "length", width])
    state.type = ir.TensorType(ir.DataType.FLOAT)
    graph.outputs.append(state)


def _write_weights(data: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Seeded normal numbers scaled by fan-in, a block of rows at a time; returns where each tensor starts."""
    rng = np.random.default_rng(0)
    offsets = {}
    with open(data, "wb") as file:
        for name, shape in shapes.items():
            offsets[name] = file.tell()
            scale = np.float32(1.0 if name == "embedding" else 0.1 / shape[-1] ** 0.5)
            for start in range(0, shape[0], _ROWS):
                block = rng.standard_normal((min(_ROWS, shape[0] - start), *shape[1:]), dtype=np.float32)
                file.write((block * scale).tobytes())
    return offsets
