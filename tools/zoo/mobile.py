"""MobileNetV3 and EfficientNet: squeeze-and-excite, hard and soft gates."""

from __future__ import annotations

from torch import Tensor, nn

from .randomize import finished

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


def conv_norm_act(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: nn.Module | None = None
) -> nn.Sequential:
    """A convolution without bias, its batch norm, and an activation where one is given."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([act] if act is not None else []))


class SqueezeExcite(nn.Module):
    """Scales channels by what their means say."""

    def __init__(self, width: int, inner: nn.Module, gate: nn.Module, squeezed: int | None = None):
        super().__init__()
        squeezed = squeezed or width // 4
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = nn.Conv2d(width, squeezed, 1), nn.Conv2d(squeezed, width, 1)
        self.inner, self.gate = inner, gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.inner(self.down(self.pool(x)))))


class InvertedResidual(nn.Module):
    """Widen, filter each channel, excite, narrow."""

    def __init__(
        self,
        inputs: int,
        wide: int,
        outputs: int,
        kernel: int,
        stride: int,
        act: type[nn.Module],
        excite: nn.Module | None,
    ):
        super().__init__()
        layers: list[nn.Module] = [conv_norm_act(inputs, wide, act=act())] if wide != inputs else []
        layers.append(conv_norm_act(wide, wide, kernel, stride, wide, act()))
        layers += [excite] if excite is not None else []
        self.body = nn.Sequential(*layers, conv_norm_act(wide, outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


MOBILENET_V3_LARGE = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)
"""(kernel, expanded channels, channels, squeeze-and-excite, hard-swish, stride), as published."""

EFFICIENTNET_B0 = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)
"""(expansion, channels, kernel, stride of the first, repeats) of each stage, as published."""


def build_mobilenet_v3(*, image: int = 64, scale: int = 2, classes: int = 10) -> TorchModel:
    """MobileNetV3-Large with all channels divided by `scale`; input [1, 3, image, image]."""
    layers: list[nn.Module] = [conv_norm_act(3, 16 // scale, 3, 2, act=nn.Hardswish())]
    inputs = 16 // scale
    for kernel, wide, outputs, squeeze, hard, stride in MOBILENET_V3_LARGE:
        wide, outputs = wide // scale, outputs // scale
        act = nn.Hardswish if hard else nn.ReLU
        excite = SqueezeExcite(wide, nn.ReLU(), nn.Hardsigmoid()) if squeeze else None
        layers.append(InvertedResidual(inputs, wide, outputs, kernel, stride, act, excite))
        inputs = outputs
    layers += [conv_norm_act(inputs, 960 // scale, act=nn.Hardswish()), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(960 // scale, 1280 // scale), nn.Hardswish(), nn.Dropout(0.2)]
    return finished(nn.Sequential(*layers, nn.Linear(1280 // scale, classes)), 1, 3, image, image)


def build_efficientnet(
    *, image: int = 64, scale: int = 2, classes: int = 10, published: bool = False
) -> TorchModel:
    """EfficientNet-B0 with all channels divided by `scale`; input [1, 3, image, image].

    As `published`, squeeze-and-excite narrows to a quarter of a block's input, not of its expanded channels.
    """
    layers: list[nn.Module] = [conv_norm_act(3, 32 // scale, 3, 2, act=nn.SiLU())]
    inputs = 32 // scale
    for expansion, channels, kernel, stride, repeats in EFFICIENTNET_B0:
        for number in range(repeats):
            wide, outputs = expansion * inputs, channels // scale
            squeezed = inputs // 4 if published else None
            excite = SqueezeExcite(wide, nn.SiLU(), nn.Sigmoid(), squeezed)
            step = stride if number == 0 else 1
            layers.append(InvertedResidual(inputs, wide, outputs, kernel, step, nn.SiLU, excite))
            inputs = outputs
    layers += [conv_norm_act(inputs, 1280 // scale, act=nn.SiLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Dropout(0.2), nn.Linear(1280 // scale, classes)]
    return finished(nn.Sequential(*layers), 1, 3, image, image)
