"""The nine `light_*.onnx` networks of the `onnx` package, with weights that make them compute something.

The files store no weights: a `ConstantOfShape` node makes each tensor, filled with 0.02. Activations then die
or saturate within a few layers and every output equals every other. Here each of these tensors becomes an
initializer of seeded random numbers, scaled by its role: variance 2 / fan-in for weights, near-neutral batch
norms with positive variance, and a last layer scaled so that a softmax behind it neither underflows nor is
uniform.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...ir.errors import ToolError

if TYPE_CHECKING:
    import onnx_ir as ir

LIGHT_NAMES = (
    "light_bvlc_alexnet",
    "light_densenet121",
    "light_inception_v1",
    "light_inception_v2",
    "light_resnet50",
    "light_shufflenet",
    "light_squeezenet",
    "light_vgg19",
    "light_zfnet512",
)

LOGIT_DEVIATION = 2.0
"""Standard deviation that the last layer is scaled to give a softmax."""

_NORM_ROLES = {1: "gain", 2: "shift", 3: "shift", 4: "gain"}


def light_path(name: str) -> Path:
    """Where the `onnx` package keeps the file of a light model.

    Raises:
        ToolError: there is no such model.
    """
    import onnx

    if name not in LIGHT_NAMES:
        raise ToolError(f"no light model {name!r}; there are: {', '.join(LIGHT_NAMES)}")
    return Path(onnx.__file__).parent / "backend/test/data/light" / f"{name}.onnx"


def light_models(seed: int = 0) -> Iterator[tuple[str, ir.Model]]:
    """Name and graph of all nine, made one at a time (VGG-19 alone holds 575 MB)."""
    for name in LIGHT_NAMES:
        yield name, light_model(name, seed)


def light_model(name: str, seed: int = 0) -> ir.Model:
    """One light model as a canonical graph with random weights; the same numbers for the same seed.

    Raises:
        ToolError: there is no such model.
    """
    from ...ir.load import load

    model = load(light_path(name), name=name)
    for node in list(model.graph):
        if node.op_type == "ConstantOfShape":
            _replace_by_weights(model, node, seed)
    _drop_unused_initializers(model)
    _scale_logits(model)
    return model


def _replace_by_weights(model: ir.Model, node: ir.Node, seed: int) -> None:
    import onnx_ir as ir

    shape_value, output = node.inputs[0], node.outputs[0]
    if shape_value is None or shape_value.const_value is None:
        return
    shape = tuple(int(d) for d in shape_value.const_value.numpy())
    generator = np.random.default_rng((seed, zlib.crc32(str(output.name).encode())))
    array = _draw(_role(output), shape, generator)
    name = output.name
    output.name = f"{name}__replaced"
    weight = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
    weight.const_value = ir.tensor(array, name=name)
    model.graph.register_initializer(weight)
    output.replace_all_uses_with(weight)
    model.graph.remove(node, safe=True)


def _role(value: ir.Value) -> str:
    """What the first consumer of a tensor uses it for: `weight`, `weight-transposed`, `gain` or `shift`."""
    use = next(iter(value.uses()))
    node, index = use.node, use.idx
    if node.op_type == "BatchNormalization":
        return _NORM_ROLES[index]
    if node.op_type in ("Unsqueeze", "Reshape"):
        return _role(node.outputs[0])
    if node.op_type == "Mul":
        return "gain"
    if node.op_type == "Gemm" and index == 1 and not node.attributes.get_int("transB", 0):
        return "weight-transposed"
    return "weight" if index == 1 and node.op_type in ("Conv", "Gemm") else "shift"


def _draw(role: str, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    if role == "gain":
        return generator.uniform(0.75, 1.25, shape).astype(np.float32)
    array = generator.standard_normal(shape, dtype=np.float32)
    if role == "shift":
        return array * np.float32(0.1)
    fan_in = shape[0] if role == "weight-transposed" else math.prod(shape[1:])
    return array * np.float32(math.sqrt(2.0 / fan_in))


def _drop_unused_initializers(model: ir.Model) -> None:
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        if value.uses() or value.is_graph_output():
            continue
        del graph.initializers[name]
        if value in graph.inputs:
            graph.inputs.remove(value)


def _scale_logits(model: ir.Model) -> None:
    """Rescale the last weighted layer so that its logits have a standard deviation of `LOGIT_DEVIATION`."""
    import onnx_ir as ir

    from ...ir.inputs import random_inputs
    from ...ir.reference import Reference

    softmax = model.graph.outputs[0].producer()
    if softmax is None or softmax.op_type != "Softmax":
        return
    logits = softmax.inputs[0]
    assert logits is not None
    values = Reference(model).run_values(random_inputs(model, seed=0), [logits.name])
    factor = np.float32(LOGIT_DEVIATION / values[logits.name].std())
    for parameter in _last_layer(logits).inputs[1:]:
        if parameter is not None and parameter.const_value is not None:
            parameter.const_value = ir.tensor(parameter.const_value.numpy() * factor, name=parameter.name)


def _last_layer(value: ir.Value | None) -> ir.Node:
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in ("Gemm", "Conv"):
            return node
        value = node.inputs[0]
    raise ToolError("a classifier without a Gemm or Conv cannot be scaled")
