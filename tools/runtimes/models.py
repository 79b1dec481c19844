"""The models that runtimes are compared on, at their published sizes, as is and with half their channels."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ...ir.errors import ToolError

if TYPE_CHECKING:
    import torch

    TorchModel = tuple[torch.nn.Module, tuple[torch.Tensor, ...]]

AS_IS, PRUNED, TUNED, VECTORS = "as-is", "pruned", "tuned", "vectors"
VARIANTS = (AS_IS, PRUNED)
"""What is measured of every model with zero tuning trials."""
TUNED_MODELS = ("resnet18", "resnet50", "mobilenet_v2", "vit_s16", "bert_base")
"""What is measured tuned as well, if that is asked for."""
VECTORS_TARGET = "host,-amx-bf16"
"""What the variant of vectors is compiled for: float32 is multiplied as such."""
PRUNING = "simplify,fold-batch-norm,prune-channels{ratio=0.5}"
"""What makes the pruned variant; proven, as is the pass's default."""


@dataclass(frozen=True)
class Entry:
    """A model of the benchmark.

    Attributes:
        title: what it is called in the table.
        module: of `tools.zoo`.
        builder: function there that returns a torch module and its example inputs.
        options: its arguments.
    """

    title: str
    module: str
    builder: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> TorchModel:
        """The torch module, in evaluation mode, and its example inputs."""
        module = importlib.import_module(f"..zoo.{self.module}", __package__)
        builder: Callable[..., TorchModel] = getattr(module, self.builder)
        return builder(**self.options)


def _entry(title: str, module: str, builder: str, **options: Any) -> Entry:
    return Entry(title, module, builder, options)


_mobile = functools.partial(_entry, module="mobile", image=224, scale=1, classes=1000)
_resnet = functools.partial(_entry, module="convolutional", builder="build_resnet")

MODELS: dict[str, Entry] = {
    "resnet18": _resnet("ResNet-18", block="basic", depths=(2, 2, 2, 2)),
    "resnet50": _resnet("ResNet-50", block="bottleneck", depths=(3, 4, 6, 3)),
    "mobilenet_v2": _entry("MobileNetV2", "convolutional", "build_mobilenet_v2"),
    "mobilenet_v3": _mobile("MobileNetV3-L", builder="build_mobilenet_v3"),
    "efficientnet_b0": _mobile("EfficientNet-B0", builder="build_efficientnet", published=True),
    "shufflenet_v2": _entry("ShuffleNetV2", "classic", "build_shufflenet_v2"),
    "densenet121": _entry("DenseNet-121", "classic", "build_densenet"),
    "vgg16": _entry("VGG-16", "classic", "build_vgg"),
    "unet": _entry("U-Net, 256x256, 32 wide", "classic", "build_unet"),
    "yolo": _entry(
        "YOLO-like, 640x640", "detection", "build_yolo", image=640, width=16, classes=80, bins=16
    ),
    "vit_s16": _entry("ViT-S/16", "transformers", "build_vit"),
    "swin_t": _entry(
        "Swin-T", "windows", "build_swin", image=224, width=96, depths=(2, 2, 6, 2), size=7, head=32,
        classes=1000,
    ),
    "convnext_t": _entry(
        "ConvNeXt-T", "windows", "build_convnext", image=224, widths=(96, 192, 384, 768),
        depths=(3, 3, 9, 3), classes=1000,
    ),
    "bert_base": _entry("BERT-base, 128 tokens", "transformers", "build_bert"),
    "gpt2_prefill": _entry(
        "GPT-2, 128 tokens", "language", "build_gpt2", vocabulary=50257, length=128, width=768, depth=12,
        heads=12,
    ),
    "gpt2_decode": _entry("GPT-2, one token, 127 cached", "recurrent", "build_gpt2_decode"),
    "gru": _entry("GRU, 2x512, 100 steps", "recurrent", "build_recurrent", kind="gru"),
    "lstm": _entry("LSTM, 2x512, 100 steps", "recurrent", "build_recurrent", kind="lstm"),
}  # fmt: skip


def chosen_models(text: str | None) -> list[str]:
    """Names out of a comma-separated list; all where None.

    Raises:
        ToolError: there is no such model.
    """
    return _chosen(text, tuple(MODELS), "model")


def chosen_variants(text: str | None) -> list[str]:
    """Variants out of a comma-separated list; those of zero trials where None.

    Raises:
        ToolError: there is no such variant.
    """
    return list(VARIANTS) if text is None else _chosen(text, (*VARIANTS, TUNED, VECTORS), "variant")


def rows_of(models: Sequence[str], variants: Sequence[str]) -> list[tuple[str, str]]:
    """What there is to measure, variant by variant, so that an early end leaves whole tables.

    Raises:
        ToolError: nothing; as where none of the models is among those that are tuned.
    """
    found = [(name, each) for each in variants for name in models if each != TUNED or name in TUNED_MODELS]
    if not found:
        raise ToolError(f"none of these models is measured tuned; those that are: {', '.join(TUNED_MODELS)}")
    return found


def _chosen(text: str | None, known: tuple[str, ...], kind: str) -> list[str]:
    if text is None:
        return list(known)
    wanted = [word.strip() for word in text.split(",") if word.strip()]
    strange = [word for word in wanted if word not in known]
    if strange or not wanted:
        what = f"no {kind} {strange[0]!r}" if strange else f"no {kind} is named"
        raise ToolError(f"{what}; there are: {', '.join(known)}")
    return [name for name in known if name in wanted]
