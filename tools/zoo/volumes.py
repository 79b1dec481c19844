"""Video and volumes: C3D, R3D, R(2+1)D and a 3-D U-Net, at published widths and smaller images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .randomize import finished

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


def c3d(*, frames: int = 16, image: int = 56, width: int = 64, classes: int = 101) -> TorchModel:
    """C3D: 3x3x3 convolutions and maxima, on images of half the published size."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, (outputs, count) in enumerate(((1, 1), (2, 1), (4, 2), (8, 2))):
        for _ in range(count):
            layers += [nn.Conv3d(channels, outputs * width, 3, padding=1), nn.ReLU()]
            channels = outputs * width
        layers.append(nn.MaxPool3d((1, 2, 2) if stage == 0 else 2))
    layers += [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return finished(nn.Sequential(*layers), 1, 3, frames, image, image)


class VideoBlock(nn.Module):
    """Two 3x3x3 convolutions, whole or split into space and time, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, split: bool):
        super().__init__()
        self.first = self._conv(inputs, outputs, stride, split)
        self.second = self._conv(outputs, outputs, 1, split)
        self.norms = nn.ModuleList([nn.BatchNorm3d(outputs), nn.BatchNorm3d(outputs)])
        shortcut = [nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs)]
        self.shortcut = nn.Sequential(*shortcut) if stride != 1 else nn.Identity()

    @staticmethod
    def _conv(inputs: int, outputs: int, stride: int, split: bool) -> nn.Module:
        if not split:
            return nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        middle = inputs * outputs * 27 // (inputs * 9 + 3 * outputs)
        return nn.Sequential(
            nn.Conv3d(inputs, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            nn.BatchNorm3d(middle),
            nn.ReLU(),
            nn.Conv3d(middle, outputs, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def _video(split: bool, frames: int, image: int, width: int, classes: int) -> TorchModel:
    layers: list[nn.Module] = [
        nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
        VideoBlock(width, width, 1, split),
        VideoBlock(width, 2 * width, 2, split),
        VideoBlock(2 * width, 4 * width, 2, split),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    ]
    return finished(nn.Sequential(*layers), 1, 3, frames, image, image)


def r3d(*, frames: int = 8, image: int = 112, width: int = 64, classes: int = 400) -> TorchModel:
    """R3D's first three stages, one block each."""
    return _video(False, frames, image, width, classes)


def r2plus1d(*, frames: int = 8, image: int = 112, width: int = 64, classes: int = 400) -> TorchModel:
    """R(2+1)D's first three stages, one block each: 3x3x3 split into 1x3x3 and 3x1x1."""
    return _video(True, frames, image, width, classes)


class VolumeNet(nn.Module):
    """A 3-D U-Net of two levels with instance norms and transposed convolutions."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.enter, self.down = self._pair(1, width, 1), self._pair(width, 2 * width, 2)
        self.bottom = self._pair(2 * width, 4 * width, 2)
        self.up2, self.up1 = (
            nn.ConvTranspose3d(4 * width, 2 * width, 2, 2),
            nn.ConvTranspose3d(2 * width, width, 2, 2),
        )
        self.join2, self.join1 = self._pair(4 * width, 2 * width, 1), self._pair(2 * width, width, 1)
        self.out = nn.Conv3d(width, classes, 1)

    @staticmethod
    def _pair(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride, 1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01),
            nn.Conv3d(outputs, outputs, 3, 1, 1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01),
        )

    def forward(self, x: Tensor) -> Tensor:
        one = self.enter(x)
        two = self.down(one)
        up = self.join2(torch.cat([self.up2(self.bottom(two)), two], 1))
        return self.out(self.join1(torch.cat([self.up1(up), one], 1)))


def unet3d(*, side: int = 32, width: int = 32, classes: int = 3) -> TorchModel:
    """A small nnU-Net-like network over cubes."""
    return finished(VolumeNet(width, classes), 1, 1, side, side, side)
