"""Convolutional networks of the published sizes: VGG-16, DenseNet-121, ShuffleNetV2 and U-Net."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutional import conv_norm
from .mobile import conv_norm_act
from .randomize import finished

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]

VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
"""Channels of each 3x3 convolution; 0 is a 2x2 maximum."""


def build_vgg(
    *, plan: tuple[int, ...] = VGG16, image: int = 224, hidden: int = 4096, classes: int = 1000
) -> TorchModel:
    """VGG-16 without batch norms; input [1, 3, image, image]."""
    layers: list[nn.Module] = []
    channels, side = 3, image
    for width in plan:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            side //= 2
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        channels = width
    layers += [nn.Flatten(), nn.Linear(channels * side * side, hidden), nn.ReLU(), nn.Dropout()]
    layers += [nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, classes)]
    return finished(nn.Sequential(*layers), 1, 3, image, image)


class DenseLayer(nn.Module):
    """Adds `growth` channels to those it is given: norm, 1x1, norm, 3x3."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.relu(self.norm1(x)))
        return torch.cat((x, self.conv2(F.relu(self.norm2(inner)))), 1)


def build_densenet(
    *,
    depths: tuple[int, ...] = (6, 12, 24, 16),
    growth: int = 32,
    image: int = 224,
    classes: int = 1000,
) -> TorchModel:
    """DenseNet-121, batch norms before the convolutions; input [1, 3, image, image]."""
    width = 2 * growth
    layers: list[nn.Module] = [*conv_norm(3, width, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for stage, depth in enumerate(depths):
        if stage:
            halved = nn.Conv2d(width, width // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(width), nn.ReLU(), halved, nn.AvgPool2d(2)]
            width //= 2
        for _ in range(depth):
            layers.append(DenseLayer(width, growth))
            width += growth
    layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return finished(nn.Sequential(*layers, nn.Linear(width, classes)), 1, 3, image, image)


class ShuffleUnit(nn.Module):
    """One half of the channels passes or is filtered, the other goes through 1x1, 3x3, 1x1; shuffled."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        half = width // 2
        entering = inputs if stride == 2 else half
        self.split = stride == 1
        self.side = nn.Sequential(
            *(
                []
                if self.split
                else [conv_norm_act(inputs, inputs, 3, 2, inputs), conv_norm_act(inputs, half, act=nn.ReLU())]
            )
        )
        self.main = nn.Sequential(
            conv_norm_act(entering, half, act=nn.ReLU()),
            conv_norm_act(half, half, 3, stride, half),
            conv_norm_act(half, half, act=nn.ReLU()),
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, worked = x.chunk(2, 1) if self.split else (self.side(x), x)
        joined = torch.cat((passed, self.main(worked)), 1)
        batch, channels, height, wide = joined.shape
        shuffled = joined.view(batch, 2, channels // 2, height, wide).transpose(1, 2)
        return shuffled.reshape(batch, channels, height, wide)


def build_shufflenet_v2(
    *,
    widths: tuple[int, ...] = (116, 232, 464),
    repeats: tuple[int, ...] = (4, 8, 4),
    last: int = 1024,
    image: int = 224,
    classes: int = 1000,
) -> TorchModel:
    """ShuffleNetV2 1.0x; input [1, 3, image, image]."""
    layers: list[nn.Module] = [conv_norm_act(3, 24, 3, 2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    inputs = 24
    for width, count in zip(widths, repeats, strict=True):
        layers += [ShuffleUnit(inputs if n == 0 else width, width, 2 if n == 0 else 1) for n in range(count)]
        inputs = width
    layers += [conv_norm_act(inputs, last, act=nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return finished(nn.Sequential(*layers, nn.Linear(last, classes)), 1, 3, image, image)


class UNet(nn.Module):
    """Double convolutions down and up again; transposed convolutions enlarge, skips are concatenated."""

    def __init__(self, width: int, depth: int, classes: int):
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            self._double(inputs, outputs) for inputs, outputs in zip([3, *widths], widths, strict=False)
        )
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(wide, half, 2, 2) for wide, half in pairs)
        self.up = nn.ModuleList(self._double(wide, half) for wide, half in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        first = conv_norm_act(inputs, outputs, 3, act=nn.ReLU())
        return nn.Sequential(first, conv_norm_act(outputs, outputs, 3, act=nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level, double in enumerate(self.down):
            x = double(x if level == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for enlarge, double in zip(self.enlarge, self.up, strict=True):
            x = double(torch.cat((kept.pop(), enlarge(x)), 1))
        return self.head(x)


def build_unet(*, width: int = 32, depth: int = 4, image: int = 256, classes: int = 2) -> TorchModel:
    """A U-Net; input [1, 3, image, image], output [1, classes, image, image]."""
    return finished(UNet(width, depth, classes), 1, 3, image, image)
