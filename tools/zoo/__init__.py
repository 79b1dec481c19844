"""Models to measure and test with: built here from plain torch, or shipped inside the `onnx` package.

Nothing is downloaded. Weights are random but seeded, scaled so that signals neither die nor explode, and
batch norms carry perturbed statistics of real activations: a comparison of two outputs means something.

Every torch model is a callable that returns `(module, example_inputs)`, so the command line can take it by
name: `graphwright compile graphwright.tools.zoo:resnet18 --target x86 -o DIR`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...ir.errors import ToolError
from .light import LIGHT_NAMES, light_model, light_models

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    TorchModel = tuple[torch.nn.Module, tuple[torch.Tensor, ...]]

TORCH_NAMES = ("resnet18", "resnet50", "mobilenet_v2", "vit_s16", "bert_base")
"""Full-size torch models; `<name>_small` is the same architecture, a few layers deep, for quick tests."""

SMALL_NAMES = tuple(f"{name}_small" for name in TORCH_NAMES)
MODEL_NAMES = (*LIGHT_NAMES, *TORCH_NAMES)

__all__ = [
    "LIGHT_NAMES",
    "MODEL_NAMES",
    "SMALL_NAMES",
    "TORCH_NAMES",
    "light_model",
    "light_models",
    "zoo_model",
]


def zoo_model(name: str) -> ir.Model:
    """The canonical graph of one model of the zoo.

    Args:
        name: one of `MODEL_NAMES` or `SMALL_NAMES`.

    Raises:
        ToolError: the zoo has no such model.
    """
    if name in LIGHT_NAMES:
        return light_model(name)
    if name not in (*TORCH_NAMES, *SMALL_NAMES):
        raise ToolError(f"no model {name!r} in the zoo; there are: {', '.join((*MODEL_NAMES, *SMALL_NAMES))}")
    from ...ir.trace import trace

    module, example = globals()[name]()
    return trace(module, example, name=name)


def __getattr__(name: str) -> Callable[[], ir.Model]:
    if name in LIGHT_NAMES:
        return functools.partial(light_model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def resnet18() -> TorchModel:
    """ResNet-18 for 224x224 images, 11.7 M parameters."""
    from .convolutional import build_resnet

    return build_resnet("basic", (2, 2, 2, 2))


def resnet18_small() -> TorchModel:
    """Two stages of ResNet-18's blocks on 32x32 images."""
    from .convolutional import build_resnet

    return build_resnet("basic", (1, 1), width=16, image=32, classes=10)


def resnet50() -> TorchModel:
    """ResNet-50 for 224x224 images, 25.6 M parameters."""
    from .convolutional import build_resnet

    return build_resnet("bottleneck", (3, 4, 6, 3))


def resnet50_small() -> TorchModel:
    """Two stages of ResNet-50's bottlenecks on 32x32 images."""
    from .convolutional import build_resnet

    return build_resnet("bottleneck", (1, 2), width=16, image=32, classes=10)


def mobilenet_v2() -> TorchModel:
    """MobileNetV2 for 224x224 images, 3.5 M parameters."""
    from .convolutional import build_mobilenet_v2

    return build_mobilenet_v2()


def mobilenet_v2_small() -> TorchModel:
    """The first four groups of MobileNetV2's inverted residuals on 32x32 images."""
    from .convolutional import build_mobilenet_v2

    return build_mobilenet_v2(groups=4, image=32, classes=10)


def vit_s16() -> TorchModel:
    """ViT-S/16 for 224x224 images, 22 M parameters."""
    from .transformers import build_vit

    return build_vit()


def vit_s16_small() -> TorchModel:
    """A two-layer ViT of width 64 on 32x32 images."""
    from .transformers import build_vit

    return build_vit(image=32, patch=8, width=64, depth=2, heads=2, classes=10)


def bert_base() -> TorchModel:
    """A BERT-base encoder over 128 tokens, 109 M parameters, with an attention mask."""
    from .transformers import build_bert

    return build_bert()


def bert_base_small() -> TorchModel:
    """A two-layer encoder of width 64 over 16 tokens."""
    from .transformers import build_bert

    return build_bert(vocabulary=200, length=16, width=64, depth=2, heads=2)
