"""The models on which simplifiers are compared, as files that no optimizer has touched.

Torch models are what `torch.onnx.export` writes with its own optimizer off; the light models are those of the
`onnx` package, in their own opset, with weights instead of the constants that stand for them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...ir.quiet import silence
from ..zoo import LIGHT_NAMES

LARGE = "large_2gb"
SYNTHETIC = "synthetic"

Writer = Callable[[Path], None]


def _exported(
    module: str, builder: str, dynamic: tuple[str, ...] = (), **options: Any
) -> Callable[[Path], None]:
    return functools.partial(_export, module, builder, dynamic, options)


def _export(module: str, builder: str, dynamic: tuple[str, ...], options: dict[str, Any], path: Path) -> None:
    import importlib

    import torch

    torch_module, example = getattr(importlib.import_module(f"..zoo.{module}", __package__), builder)(
        **options
    )
    shapes = (dict.fromkeys(range(len(dynamic)), torch.export.Dim.DYNAMIC),) if dynamic else None
    with silence():
        program = torch.export.export(torch_module, example, dynamic_shapes=shapes, strict=False)
        exported = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert exported is not None
    exported.save(path, external_data=False)


def _light(name: str, path: Path) -> None:
    """The package's own file; weights made of a constant become the initializers that `light_model` draws."""
    import onnx
    from onnx import numpy_helper

    from ...ir.constants import constant_array
    from ..zoo.light import light_model, light_path

    weights = light_model(name).graph.initializers
    model = onnx.load(light_path(name))
    graph = model.graph
    kept = [node for node in graph.node if node.op_type != "ConstantOfShape"]
    made = [node.output[0] for node in graph.node if node.op_type == "ConstantOfShape"]
    used = {name for node in kept for name in node.input}
    stored = [tensor for tensor in graph.initializer if tensor.name in used]
    arrays = {name: constant_array(weights[name]) for name in made}
    drawn = [numpy_helper.from_array(array, name) for name, array in arrays.items() if array is not None]
    names = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in names]
    for field, content in (("node", kept), ("initializer", stored + drawn), ("input", inputs)):
        graph.ClearField(field)
        getattr(graph, field).extend(content)
    # Before version 4 every initializer had to be an input too.
    model.ir_version = 4
    onnx.save(model, path)


def _synthetic(nodes: int, path: Path) -> None:
    from ...ir.save import save
    from ..zoo.synthetic import build_synthetic

    save(build_synthetic(nodes), path)


def _control_flow(path: Path) -> None:
    from ...ir.save import save
    from ..zoo.synthetic import build_control_flow

    save(build_control_flow(), path)


def _large(path: Path) -> None:
    from ..zoo.large import write_large

    write_large(path)


MODELS: dict[str, Writer] = {
    **{name: functools.partial(_light, name) for name in LIGHT_NAMES},
    "resnet101": _exported(
        "convolutional", "build_resnet", block="bottleneck", depths=(3, 4, 23, 3), width=8, image=64
    ),
    "mobilenet_v3": _exported("mobile", "build_mobilenet_v3"),
    "efficientnet": _exported("mobile", "build_efficientnet"),
    "convnext": _exported("windows", "build_convnext", widths=(16, 32, 64, 128), depths=(3, 3, 9, 3)),
    "vit": _exported("transformers", "build_vit", image=64, patch=8, width=48, heads=4, classes=10),
    "swin_s": _exported("windows", "build_swin", image=128, width=16, depths=(2, 2, 18, 2)),
    "cait": _exported("transformers", "build_cait"),
    "mixer": _exported("windows", "build_mixer", depth=12),
    "yolo": _exported("detection", "build_yolo"),
    "detr": _exported("detection", "build_detr"),
    "gpt2": _exported("language", "build_gpt2", depth=12),
    "llama": _exported("language", "build_llama", depth=16),
    "whisper": _exported("language", "build_whisper", depth=6),
    "llama_dynamic": _exported("language", "build_llama", dynamic=("batch", "sequence"), batch=2, depth=16),
    "control_flow": _control_flow,
    LARGE: _large,
    **{
        f"{SYNTHETIC}_{nodes // 1000}k": functools.partial(_synthetic, nodes)
        for nodes in (1000, 3000, 10000, 30000)
    },
}
"""What writes each model to a file."""


def build_model(name: str, folder: Path) -> Path:
    """Write one of `MODELS` to `folder`, unless it is there already, and return the file."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        temporary = folder / f".{name}.onnx"
        if name == LARGE:
            # Its data file is named after it.
            MODELS[name](path)
            return path
        MODELS[name](temporary)
        temporary.replace(path)
    return path


def drop_model(path: Path) -> None:
    """Remove a model and its external data."""
    path.unlink(missing_ok=True)
    path.with_name(path.name + ".data").unlink(missing_ok=True)
