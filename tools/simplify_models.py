"""The models on which simplifiers are compared: exported as torch exports them, its own optimizer off."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .zoo import LIGHT_NAMES

if TYPE_CHECKING:
    import onnx_ir as ir


def _traced(module: str, builder: str, dynamic: tuple[str, ...] = (), **options: Any) -> ir.Model:
    import importlib

    from ..ir.trace import trace

    torch_module, example = getattr(importlib.import_module(f".zoo.{module}", __package__), builder)(
        **options
    )
    shapes = (dict(enumerate(dynamic)),) if dynamic else None
    return trace(torch_module, example, dynamic_shapes=shapes)


def _light(name: str) -> ir.Model:
    from .zoo import light_model

    return light_model(name)


def _synthetic(nodes: int) -> ir.Model:
    from .zoo.synthetic import build_synthetic

    return build_synthetic(nodes)


def _control_flow() -> ir.Model:
    from .zoo.synthetic import build_control_flow

    return build_control_flow()


MODELS: dict[str, Callable[[], ir.Model]] = {
    **{name: functools.partial(_light, name) for name in LIGHT_NAMES},
    "resnet101": functools.partial(
        _traced, "convolutional", "build_resnet", block="bottleneck", depths=(3, 4, 23, 3), width=8, image=64
    ),
    "vit": functools.partial(
        _traced, "transformers", "build_vit", image=64, patch=8, width=64, depth=6, heads=4, classes=10
    ),
    "swin": functools.partial(_traced, "windows", "build_swin"),
    "mixer": functools.partial(_traced, "windows", "build_mixer"),
    "convnext": functools.partial(_traced, "windows", "build_convnext"),
    "mobilenet_v3": functools.partial(_traced, "mobile", "build_mobilenet_v3"),
    "efficientnet": functools.partial(_traced, "mobile", "build_efficientnet"),
    "yolo": functools.partial(_traced, "mobile", "build_yolo"),
    "gpt2": functools.partial(_traced, "language", "build_gpt2"),
    "llama": functools.partial(_traced, "language", "build_llama"),
    "whisper": functools.partial(_traced, "language", "build_whisper"),
    "llama_dynamic": functools.partial(
        _traced, "language", "build_llama", dynamic=("batch", "sequence"), batch=2
    ),
    "control_flow": _control_flow,
    **{
        f"synthetic_{nodes // 1000}k": functools.partial(_synthetic, nodes)
        for nodes in (1000, 3000, 10000, 30000)
    },
}


def build_model(name: str, folder: Path) -> Path:
    """Write one of `MODELS` to `folder`, unless it is there already, and return the file."""
    from ..ir.save import save

    path = folder / f"{name}.onnx"
    if not path.exists():
        save(MODELS[name](), path)
    return path
