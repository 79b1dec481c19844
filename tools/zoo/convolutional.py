"""ResNet and MobileNetV2 in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .randomize import randomize

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


def conv_norm(c_in: int, c_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias and its batch norm; `same` padding for odd kernels."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(c_out)]


class Residual(nn.Module):
    """`relu(body(x) + shortcut(x))`, the shortcut projected where the shape changes."""

    def __init__(self, body: list[nn.Module], c_in: int, c_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(*body)
        projected = stride != 1 or c_in != c_out
        self.shortcut = (
            nn.Sequential(*conv_norm(c_in, c_out, 1, stride=stride)) if projected else nn.Identity()
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def _basic(c_in: int, width: int, stride: int) -> Residual:
    body = [*conv_norm(c_in, width, 3, stride=stride), nn.ReLU(), *conv_norm(width, width, 3)]
    return Residual(body, c_in, width, stride)


def _bottleneck(c_in: int, width: int, stride: int) -> Residual:
    body = [
        *conv_norm(c_in, width, 1),
        nn.ReLU(),
        *conv_norm(width, width, 3, stride=stride),
        nn.ReLU(),
        *conv_norm(width, 4 * width, 1),
    ]
    return Residual(body, c_in, 4 * width, stride)


def build_resnet(
    block: str, depths: Sequence[int], *, width: int = 64, image: int = 224, classes: int = 1000
) -> TorchModel:
    """A ResNet of `basic` or `bottleneck` blocks, `depths[i]` in stage i; input [1, 3, image, image]."""
    body = build_resnet_body(block, depths, width)
    channels = width * 2 ** (len(depths) - 1) * (1 if block == "basic" else 4)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return _finish(nn.Sequential(*body, *head), image)


def build_resnet_body(block: str, depths: Sequence[int], width: int) -> nn.Sequential:
    """A ResNet's stem and stages, without pooling and head."""
    make, expansion = (_basic, 1) if block == "basic" else (_bottleneck, 4)
    layers = [*conv_norm(3, width, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, depth in enumerate(depths):
        for index in range(depth):
            stage_width = width * 2**stage
            layers.append(make(channels, stage_width, 2 if stage > 0 and index == 0 else 1))
            channels = stage_width * expansion
    return nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1; added to the input where the shapes agree."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int):
        super().__init__()
        hidden = c_in * expansion
        expand = [*conv_norm(c_in, hidden, 1), nn.ReLU6()] if expansion != 1 else []
        depthwise = [*conv_norm(hidden, hidden, 3, stride=stride, groups=hidden), nn.ReLU6()]
        self.body = nn.Sequential(*expand, *depthwise, *conv_norm(hidden, c_out, 1))
        self.add = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.add else self.body(x)


MOBILENET_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""(expansion, channels, repeats, stride of the first) of each group of blocks."""


def build_mobilenet_v2(*, groups: int = 7, image: int = 224, classes: int = 1000) -> TorchModel:
    """MobileNetV2, cut after `groups` groups of blocks; input [1, 3, image, image]."""
    layers = [*conv_norm(3, 32, 3, stride=2), nn.ReLU6()]
    channels = 32
    for expansion, width, repeats, stride in MOBILENET_GROUPS[:groups]:
        for index in range(repeats):
            layers.append(InvertedResidual(channels, width, stride if index == 0 else 1, expansion))
            channels = width
    head = 1280 if groups == len(MOBILENET_GROUPS) else 4 * channels
    layers += [*conv_norm(channels, head, 1), nn.ReLU6()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(head, classes)]
    return _finish(nn.Sequential(*layers), image)


def _finish(module: nn.Module, image: int) -> TorchModel:
    example = (torch.randn(1, 3, image, image, generator=torch.Generator().manual_seed(1)),)
    return randomize(module, example), example
