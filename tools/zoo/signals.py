"""Networks over one axis, as speech and audio have: stems, vocoders, Conformer; and one over point clouds.

Every builder has the published widths by default and fewer repetitions than the published depth.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .randomize import finished

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


def wav2vec_stem(*, samples: int = 8000, width: int = 512) -> TorchModel:
    """wav2vec 2.0's feature encoder: seven strided convolutions over a waveform, half a second by default."""
    layers: list[nn.Module] = [nn.Conv1d(1, width, 10, 5, bias=False), nn.GroupNorm(width, width), nn.GELU()]
    for kernel in (3, 3, 3, 3, 2, 2):
        layers += [nn.Conv1d(width, width, kernel, 2, bias=False), nn.GELU()]
    return finished(nn.Sequential(*layers), 1, 1, samples)


class DilatedResidual(nn.Module):
    """HiFi-GAN's residual block: dilated convolutions, each followed by a plain one."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...] = (1, 3, 5)):
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=d * (kernel // 2), dilation=d) for d in dilations
        )
        self.plain = nn.ModuleList(nn.Conv1d(width, width, kernel, padding=kernel // 2) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + 0.3 * plain(F.leaky_relu(dilated(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Branches(nn.Module):
    """The mean of residual blocks with several kernels."""

    def __init__(self, width: int, kernels: tuple[int, ...]):
        super().__init__()
        self.blocks = nn.ModuleList(DilatedResidual(width, kernel) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = (block(x) for block in self.blocks)
        for each in rest:
            first = first + each
        return first / len(self.blocks)


class Vocoder(nn.Module):
    """HiFi-GAN's generator: transposed convolutions, each followed by residual blocks of several widths."""

    def __init__(self, bands: int, width: int, rates: tuple[tuple[int, int], ...]):
        super().__init__()
        self.pre = nn.Conv1d(bands, width, 7, padding=3)
        self.up, self.blocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in rates:
            self.up.append(nn.ConvTranspose1d(width, width // 2, kernel, rate, (kernel - rate) // 2))
            width //= 2
            self.blocks.append(Branches(width, (3, 7, 11)))
        self.post = nn.Conv1d(width, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pre(x)
        for up, block in zip(self.up, self.blocks, strict=True):
            x = block(up(F.leaky_relu(x, 0.1)))
        return torch.tanh(self.post(F.leaky_relu(x)))


def hifigan(*, frames: int = 16, bands: int = 80, width: int = 256) -> TorchModel:
    """HiFi-GAN V1's generator at half its width: mel frames to 256 samples each."""
    rates = ((8, 16), (8, 16), (2, 4), (2, 4))
    return finished(Vocoder(bands, width, rates), 1, bands, frames)


class Conformer(nn.Module):
    """A Conformer block: half a feed-forward, attention, gated depthwise convolution, the other half."""

    def __init__(self, width: int, heads: int, kernel: int):
        super().__init__()
        self.heads = heads
        self.first, self.second = self._feed(width), self._feed(width)
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.conv_norm, self.widen = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.batch_norm, self.narrow = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)
        self.last = nn.LayerNorm(width)

    @staticmethod
    def _feed(width: int) -> nn.Module:
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        x = x + 0.5 * self.first(x)
        split = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        joined = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(joined)
        gated = F.glu(self.widen(self.conv_norm(x).transpose(1, 2)), dim=1)
        x = x + self.narrow(F.silu(self.batch_norm(self.depthwise(gated)))).transpose(1, 2)
        return self.last(x + 0.5 * self.second(x))


def conformer(
    *, length: int = 200, width: int = 256, heads: int = 4, kernel: int = 31, depth: int = 2
) -> TorchModel:
    """Conformer blocks over `length` frames."""
    blocks = [Conformer(width, heads, kernel) for _ in range(depth)]
    return finished(nn.Sequential(*blocks), 1, length, width)


class TasNet(nn.Module):
    """Conv-TasNet's masks: a learned filter bank, dilated depthwise blocks, and the bank's transpose."""

    def __init__(self, bank: int, narrow: int, wide: int, depth: int):
        super().__init__()
        self.encode = nn.Conv1d(1, bank, 16, 8, bias=False)
        self.norm, self.enter = nn.GroupNorm(1, bank), nn.Conv1d(bank, narrow, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(narrow, wide, 1),
                nn.PReLU(),
                nn.GroupNorm(1, wide),
                nn.Conv1d(wide, wide, 3, padding=2**i, dilation=2**i, groups=wide),
                nn.PReLU(),
                nn.GroupNorm(1, wide),
                nn.Conv1d(wide, narrow, 1),
            )
            for i in range(depth)
        )
        self.mask = nn.Conv1d(narrow, 2 * bank, 1)
        self.decode = nn.ConvTranspose1d(bank, 1, 16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        coded = F.relu(self.encode(x))
        y = self.enter(self.norm(coded))
        for block in self.blocks:
            y = y + block(y)
        first, second = torch.sigmoid(self.mask(y)).chunk(2, dim=1)
        return torch.cat([self.decode(coded * first), self.decode(coded * second)], dim=1)


def conv_tasnet(
    *, samples: int = 8000, bank: int = 512, narrow: int = 128, wide: int = 512, depth: int = 4
) -> TorchModel:
    """Separates two speakers in a waveform."""
    return finished(TasNet(bank, narrow, wide, depth), 1, 1, samples)


class PointNet(nn.Module):
    """PointNet's classifier: the same layers for every point, the maximum over points, a global answer."""

    def __init__(self, classes: int):
        super().__init__()
        widths = (3, 64, 64, 64, 128, 1024)
        self.points = nn.Sequential(
            *(nn.Sequential(nn.Conv1d(a, b, 1), nn.BatchNorm1d(b), nn.ReLU()) for a, b in pairwise(widths))
        )
        self.head = nn.Sequential(
            nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.head(self.points(x).amax(dim=2)), dim=1)


def pointnet(*, points: int = 1024, classes: int = 40) -> TorchModel:
    """Classifies a cloud of points."""
    return finished(PointNet(classes), 1, 3, points)
