"""Vision models that shuffle tokens about: shifted windows, mixed tokens, ConvNeXt blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .randomize import finished

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


class WindowAttention(nn.Module):
    """Attention inside windows of size x size tokens with a learned bias per offset, shifted cyclically."""

    mask: Tensor | None
    index: Tensor

    def __init__(self, width: int, heads: int, size: int, shift: int, side: int):
        super().__init__()
        self.heads, self.size, self.shift = heads, size, shift
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.table = nn.Parameter(0.2 * torch.randn((2 * size - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        offsets = (places[:, :, None] - places[:, None, :]) + size - 1
        self.register_buffer("index", offsets[0] * (2 * size - 1) + offsets[1])
        self.register_buffer("mask", self._mask(side) if shift else None)

    def _mask(self, side: int) -> Tensor:
        """Tokens that the shift brought together from opposite borders do not see each other."""
        regions = torch.zeros(1, side, side, 1)
        bands = (slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None))
        for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
            regions[:, rows, columns] = number
        ids = self._windows(regions).squeeze(-1)
        return (ids[:, None, :] != ids[:, :, None]).float() * -100.0

    def _windows(self, x: Tensor) -> Tensor:
        batch, height, wide, channels = x.shape
        x = x.view(batch, height // self.size, self.size, wide // self.size, self.size, channels)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, self.size**2, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, side, _, width = x.shape
        shifted = torch.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        windows = self._windows(shifted)
        count, tokens = windows.shape[:2]
        qkv = self.qkv(windows).view(count, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(tokens, tokens, self.heads).permute(2, 0, 1)
        scores = scores + bias[None]
        if self.mask is not None:
            per_image = self.mask.shape[0]
            scores = scores.view(count // per_image, per_image, self.heads, tokens, tokens)
            scores = (scores + self.mask[None, :, None]).view(count, self.heads, tokens, tokens)
        mixed = self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(count, tokens, width))
        ratio = side // self.size
        mixed = mixed.view(batch, ratio, ratio, self.size, self.size, width)
        mixed = mixed.permute(0, 1, 3, 2, 4, 5).reshape(batch, side, side, width)
        return torch.roll(mixed, (self.shift, self.shift), (1, 2)) if self.shift else mixed


class SwinBlock(nn.Module):
    """Window attention and an MLP, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int, size: int, shift: int, side: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = WindowAttention(width, heads, size, shift, side)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Every 2x2 tokens become one of twice the width."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduce(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """Stages of shifted-window blocks with patch merging between them."""

    def __init__(self, image: int, width: int, depths: tuple[int, ...], size: int, classes: int, head: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        side = image // 4
        layers: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            if stage:
                layers.append(PatchMerging(width))
                side, width = side // 2, 2 * width
            for number in range(depth):
                shift = size // 2 if number % 2 and side > size else 0
                layers.append(SwinBlock(width, max(width // head, 1), size, shift, side))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(x).mean((1, 2)))


def build_swin(
    *,
    image: int = 64,
    width: int = 32,
    depths: tuple[int, ...] = (2, 2, 4),
    size: int = 4,
    classes: int = 10,
    head: int = 16,
) -> TorchModel:
    """A Swin transformer with heads of `head` channels; input [1, 3, image, image], output [1, classes]."""
    return finished(Swin(image, width, depths, size, classes, head), 1, 3, image, image)


class MixerBlock(nn.Module):
    """An MLP over the tokens, then one over the channels."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """MLP-Mixer."""

    def __init__(self, image: int, patch: int, width: int, depth: int, classes: int):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock((image // patch) ** 2, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


def build_mixer(
    *, image: int = 64, patch: int = 8, width: int = 64, depth: int = 8, classes: int = 10
) -> TorchModel:
    """An MLP-Mixer; input [1, 3, image, image], output [1, classes]."""
    return finished(Mixer(image, patch, width, depth, classes), 1, 3, image, image)


class ChannelsFirstNorm(nn.Module):
    """Layer normalization over the channels of [N, C, H, W], written out as the original does."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * scaled + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, then an inverted bottleneck in channels-last order, scaled per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        inner = self.gamma * self.narrow(F.gelu(self.widen(inner)))
        return x + inner.permute(0, 3, 1, 2)


def build_convnext(
    *,
    image: int = 64,
    widths: tuple[int, ...] = (24, 48, 96),
    depths: tuple[int, ...] = (3, 3, 3),
    classes: int = 10,
) -> TorchModel:
    """A ConvNeXt; input [1, 3, image, image], output [1, classes]."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), ChannelsFirstNorm(widths[0])]
    for stage, width in enumerate(widths):
        if stage:
            layers += [ChannelsFirstNorm(widths[stage - 1]), nn.Conv2d(widths[stage - 1], width, 2, 2)]
        layers += [ConvNeXtBlock(width) for _ in range(depths[stage])]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(widths[-1]), nn.Linear(widths[-1], classes)]
    return finished(nn.Sequential(*layers, *head), 1, 3, image, image)
