"""Convolutional networks with squeeze-and-excite, hard activations and detection heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .randomize import randomize

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


def _finished(module: nn.Module, *shape: int) -> TorchModel:
    example = (torch.randn(*shape, generator=torch.Generator().manual_seed(1)),)
    return randomize(module, example), example


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act] if act is not None else []))


class SqueezeExcite(nn.Module):
    """Scales channels by what their means say."""

    def __init__(self, width: int, inner: nn.Module, gate: nn.Module):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)
        self.inner, self.gate = inner, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.inner(self.down(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, excite, narrow."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, act: type[nn.Module], gate: type[nn.Module]
    ):
        super().__init__()
        wide = 4 * inputs
        inner = nn.ReLU if gate is nn.Hardsigmoid else act
        self.body = nn.Sequential(
            _conv(inputs, wide, act=act()),
            _conv(wide, wide, kernel, stride, wide, act()),
            SqueezeExcite(wide, inner(), gate()),
            _conv(wide, outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def _mobile(act: type[nn.Module], gate: type[nn.Module], image: int, classes: int) -> TorchModel:
    layers: list[nn.Module] = [_conv(3, 16, 3, 2, act=act())]
    inputs = 16
    for outputs, kernel, stride, depth in ((16, 3, 1, 1), (24, 3, 2, 3), (40, 5, 2, 3), (64, 5, 1, 3)):
        for number in range(depth):
            layers.append(InvertedResidual(inputs, outputs, kernel, stride if number == 0 else 1, act, gate))
            inputs = outputs
    layers += [_conv(inputs, 4 * inputs, act=act()), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(4 * inputs, 128), act(), nn.Dropout(0.2), nn.Linear(128, classes)]
    return _finished(nn.Sequential(*layers), 1, 3, image, image)


def build_mobilenet_v3(*, image: int = 64, classes: int = 10) -> TorchModel:
    """Like MobileNetV3: hard-swish, squeeze-and-excite with hard-sigmoid."""
    return _mobile(nn.Hardswish, nn.Hardsigmoid, image, classes)


def build_efficientnet(*, image: int = 64, classes: int = 10) -> TorchModel:
    """Like EfficientNet: SiLU, squeeze-and-excite with sigmoid."""
    return _mobile(nn.SiLU, nn.Sigmoid, image, classes)


class CrossStage(nn.Module):
    """Half of the channels pass through bottlenecks, and all partial results are put together."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        half = width // 2
        self.enter = _conv(width, width, act=nn.SiLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(half, half, 3, act=nn.SiLU()), _conv(half, half, 3, act=nn.SiLU()))
            for _ in range(depth)
        )
        self.leave = _conv((2 + depth) * half, width, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Yolo(nn.Module):
    """Backbone, a feature pyramid with upsampling, and a head that decodes boxes on a grid."""

    grid: Tensor
    strides: Tensor

    def __init__(self, image: int, width: int, classes: int):
        super().__init__()
        act = nn.SiLU
        self.stem = nn.Sequential(_conv(3, width, 3, 2, act=act()), _conv(width, 2 * width, 3, 2, act=act()))
        self.low = nn.Sequential(CrossStage(2 * width, 1), _conv(2 * width, 4 * width, 3, 2, act=act()))
        self.middle = CrossStage(4 * width, 2)
        self.high = nn.Sequential(_conv(4 * width, 8 * width, 3, 2, act=act()), CrossStage(8 * width, 1))
        self.pools = nn.MaxPool2d(5, 1, 2)
        self.spatial = _conv(32 * width, 8 * width, act=act())
        self.up = nn.Upsample(scale_factor=2)
        self.join = _conv(12 * width, 4 * width, act=act())
        self.classes = classes
        outputs = 4 + classes
        self.heads = nn.ModuleList([nn.Conv2d(4 * width, outputs, 1), nn.Conv2d(8 * width, outputs, 1)])
        sides = (image // 8, image // 16)
        grids = [
            torch.stack(torch.meshgrid(torch.arange(s), torch.arange(s), indexing="xy"), 0).flatten(1)
            for s in sides
        ]
        self.register_buffer("grid", torch.cat(grids, 1).float() + 0.5)
        self.register_buffer("strides", torch.cat([torch.full((s * s,), image / s) for s in sides]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        middle = self.middle(self.low(self.stem(x)))
        high = self.high(middle)
        pooled = [high]
        for _ in range(3):
            pooled.append(self.pools(pooled[-1]))
        high = self.spatial(torch.cat(pooled, 1))
        fine = self.join(torch.cat([self.up(high), middle], 1))
        found = torch.cat(
            [head(part).flatten(2) for head, part in zip(self.heads, (fine, high), strict=True)], 2
        )
        boxes, scores = found.split((4, self.classes), 1)
        near, far = boxes.sigmoid().mul(2.0).chunk(2, 1)
        first, last = self.grid - near, self.grid + far
        centre, size = (first + last) / 2, last - first
        return torch.cat([centre, size], 1) * self.strides, scores.sigmoid()


def build_yolo(*, image: int = 64, width: int = 8, classes: int = 4) -> TorchModel:
    """A detector; input [1, 3, image, image], outputs [1, 4, n] (boxes) and [1, classes, n]."""
    return _finished(Yolo(image, width, classes), 1, 3, image, image)
