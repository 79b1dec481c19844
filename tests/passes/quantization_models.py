"""Graphs for the tests of quantization, and ONNX Runtime with its optimizations on."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir


def model_of(text: str, seed: int = 0, keep: str = "x", **contents) -> ir.Model:
    """Parses a graph and makes initializers of all inputs but `keep`; `contents` gives arrays by name."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 23]>\n{text}')
    rng = np.random.default_rng(seed)
    for value in list(model.graph.inputs):
        if value.name in keep.split():
            continue
        model.graph.inputs.remove(value)
        shape = tuple(value.shape)
        fan = max(int(np.prod(shape[1:])), 1)
        drawn = rng.normal(size=shape) / np.sqrt(fan)
        array = np.asarray(contents.get(value.name, drawn), value.dtype.numpy())
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    for i, node in enumerate(node for graph in model.graphs() for node in graph):
        node.name = f"{node.op_type}_{i}"
    return model


def samples_for(model: ir.Model, count: int = 16, seed: int = 1) -> dict[str, np.ndarray]:
    """Normal numbers for every input."""
    rng = np.random.default_rng(seed)
    shapes = {
        value.name: [d if isinstance(d, int) else count for d in value.shape] for value in model.graph.inputs
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def optimized_in_onnx_runtime(
    model: ir.Model, feeds: dict[str, np.ndarray], folder: Path, *, as_on_arm: bool = False
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Outputs and operators of ONNX Runtime with its graph optimizations on.

    Args:
        model: what to run.
        feeds: inputs by name.
        folder: where the optimized graph goes.
        as_on_arm: whether int8 activations stay what they are, for which ONNX Runtime has integer kernels as well.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if as_on_arm:
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, feeds), strict=True))
    return outputs, [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]
