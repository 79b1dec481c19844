"""Detectors: a YOLO with a feature pyramid in both directions, and a DETR with object queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolutional import build_resnet_body
from .mobile import conv_norm_act as _conv
from .randomize import finished

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


class CrossStage(nn.Module):
    """Half of the channels pass through bottlenecks, and all partial results are put together (C2f)."""

    def __init__(self, inputs: int, width: int, depth: int, *, residual: bool):
        super().__init__()
        half = width // 2
        self.residual = residual
        self.enter = _conv(inputs, width, act=nn.SiLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(_conv(half, half, 3, act=nn.SiLU()), _conv(half, half, 3, act=nn.SiLU()))
            for _ in range(depth)
        )
        self.leave = _conv((2 + depth) * half, width, act=nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            inner = block(parts[-1])
            parts.append(parts[-1] + inner if self.residual else inner)
        return self.leave(torch.cat(parts, 1))


class SpatialPyramid(nn.Module):
    """Max pooling three times over, everything concatenated (SPPF)."""

    def __init__(self, width: int):
        super().__init__()
        self.enter, self.leave = (_conv(width, width // 2, act=nn.SiLU()), _conv(2 * width, width))
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class BoxHead(nn.Module):
    """Box distances as distributions over `bins` and class scores, for one scale."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        act = nn.SiLU
        layers = [_conv(inputs, width, 3, act=act()), _conv(width, width, 3, act=act())]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Yolo(nn.Module):
    """Backbone, a pyramid up and down, and heads on three scales whose boxes are decoded in the graph."""

    def __init__(self, width: int, classes: int, bins: int):
        super().__init__()
        act = nn.SiLU
        self.classes, self.bins = classes, bins
        w = [width * 2**i for i in range(5)]
        self.stem = nn.Sequential(_conv(3, w[0], 3, 2, act=act()), _conv(w[0], w[1], 3, 2, act=act()))
        self.stages = nn.ModuleList(
            [
                CrossStage(w[1], w[1], 1, residual=True),
                nn.Sequential(_conv(w[1], w[2], 3, 2, act=act()), CrossStage(w[2], w[2], 2, residual=True)),
                nn.Sequential(_conv(w[2], w[3], 3, 2, act=act()), CrossStage(w[3], w[3], 2, residual=True)),
                nn.Sequential(
                    _conv(w[3], w[4], 3, 2, act=act()),
                    CrossStage(w[4], w[4], 1, residual=True),
                    SpatialPyramid(w[4]),
                ),
            ]
        )
        self.up = nn.Upsample(scale_factor=2)
        self.up1 = CrossStage(w[3] + w[4], w[3], 1, residual=False)
        self.up2 = CrossStage(w[2] + w[3], w[2], 1, residual=False)
        self.shrink1, self.shrink2 = (_conv(w[2], w[2], 3, 2, act=act()), _conv(w[3], w[3], 3, 2, act=act()))
        self.down1 = CrossStage(w[2] + w[3], w[3], 1, residual=False)
        self.down2 = CrossStage(w[3] + w[4], w[4], 1, residual=False)
        self.boxes = nn.ModuleList(BoxHead(w[i], w[1], 4 * bins) for i in (2, 3, 4))
        self.scores = nn.ModuleList(BoxHead(w[i], w[1], classes) for i in (2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        fine, middle, coarse = features[2:]
        up1 = self.up1(torch.cat([self.up(coarse), middle], 1))
        up2 = self.up2(torch.cat([self.up(up1), fine], 1))
        down1 = self.down1(torch.cat([self.shrink1(up2), up1], 1))
        down2 = self.down2(torch.cat([self.shrink2(down1), coarse], 1))
        scales = (up2, down1, down2)
        found = [
            torch.cat([box(part), score(part)], 1).view(part.shape[0], 4 * self.bins + self.classes, -1)
            for box, score, part in zip(self.boxes, self.scores, scales, strict=True)
        ]
        boxes, scores = torch.cat(found, 2).split((4 * self.bins, self.classes), 1)
        centres, strides = self._anchors(scales, x.shape[-1])
        near, far = self._distances(boxes).chunk(2, 1)
        first, last = centres - near, centres + far
        return torch.cat([torch.cat([(first + last) / 2, last - first], 1) * strides, scores.sigmoid()], 1)

    def _distances(self, boxes: Tensor) -> Tensor:
        """The mean of each distribution over `bins`: a convolution with the weights 0, 1, 2, ..."""
        batch, _, anchors = boxes.shape
        spread = boxes.view(batch, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        places = torch.arange(self.bins, dtype=boxes.dtype).view(1, self.bins, 1, 1)
        return F.conv2d(spread, places).view(batch, 4, anchors)

    def _anchors(self, scales: tuple[Tensor, ...], image: int) -> tuple[Tensor, Tensor]:
        centres, strides = [], []
        for part in scales:
            height, wide = part.shape[-2:]
            rows, columns = (torch.arange(n, dtype=part.dtype) + 0.5 for n in (height, wide))
            grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], -1).view(-1, 2)
            centres.append(grid)
            strides.append(torch.full((height * wide, 1), image / wide, dtype=part.dtype))
        return torch.cat(centres).transpose(0, 1)[None], torch.cat(strides).transpose(0, 1)


def build_yolo(*, image: int = 64, width: int = 8, classes: int = 4, bins: int = 8) -> TorchModel:
    """A detector like YOLOv8-n; input [1, 3, image, image], output [1, 4 + classes, anchors]."""
    return finished(Yolo(width, classes, bins), 1, 3, image, image)


class DetrAttention(nn.Module):
    """Attention in which positions are added to queries and keys but not to values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def _split(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = self._split(self.query(query)), self._split(self.key(key)), self._split(self.value(value))
        scores = torch.matmul(q, k.transpose(2, 3)) * (q.shape[-1] ** -0.5)
        if mask is not None:
            scores = scores.masked_fill(mask[:, None, None, :], float("-inf"))
        mixed = torch.matmul(scores.softmax(-1), v).transpose(1, 2)
        return self.out(mixed.reshape(query.shape))


class DetrEncoderLayer(nn.Module):
    """Self-attention and an MLP, normalized after each."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = DetrAttention(width, heads)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        placed = x + places
        x = self.norm1(x + self.attention(placed, placed, x, mask))
        return self.norm2(x + self.narrow(F.relu(self.widen(x))))


class DetrDecoderLayer(DetrEncoderLayer):
    """The same with attention to the image in between."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.cross, self.norm3 = DetrAttention(width, heads), nn.LayerNorm(width)

    def decode(self, x: Tensor, queries: Tensor, image: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        placed = x + queries
        x = self.norm1(x + self.attention(placed, placed, x))
        x = self.norm2(x + self.cross(x + queries, image + places, image, mask))
        return self.norm3(x + self.narrow(F.relu(self.widen(x))))


class Detr(nn.Module):
    """A ResNet, sine positions counted from the padding mask, an encoder, a decoder, and two heads."""

    def __init__(self, width: int, depth: int, heads: int, queries: int, classes: int, backbone: int):
        super().__init__()
        self.width = width
        self.body = build_resnet_body("bottleneck", (2, 2, 2, 2), backbone)
        self.project = nn.Conv2d(32 * backbone, width, 1)
        self.encoder = nn.ModuleList(DetrEncoderLayer(width, heads) for _ in range(depth))
        self.decoder = nn.ModuleList(DetrDecoderLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Embedding(queries, width)
        self.labels = nn.Linear(width, classes + 1)
        self.boxes = nn.ModuleList(nn.Linear(width, width if i < 2 else 4) for i in range(3))

    def _positions(self, mask: Tensor) -> Tensor:
        """Sines and cosines of the places that are not padding, [batch, height, width, channels]."""
        seen = (~mask).to(torch.float32)
        rows, columns = seen.cumsum(1), seen.cumsum(2)
        rows = rows / (rows[:, -1:, :] + 1e-6) * 6.283185307179586
        columns = columns / (columns[:, :, -1:] + 1e-6) * 6.283185307179586
        steps = torch.arange(self.width // 2, dtype=torch.float32)
        steps = 10000 ** (2 * torch.div(steps, 2, rounding_mode="floor") / (self.width // 2))
        parts = []
        for axis in (rows, columns):
            angles = axis[:, :, :, None] / steps
            waves = torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=4)
            parts.append(waves.flatten(3))
        return torch.cat(parts, 3)

    def forward(self, pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        features = self.project(self.body(pixels))
        side = features.shape[-2:]
        small = F.interpolate(mask[:, None].float(), size=side).to(torch.bool)[:, 0]
        places = self._positions(small).flatten(1, 2)
        x, padding = features.flatten(2).permute(0, 2, 1), small.flatten(1)
        for layer in self.encoder:
            x = layer(x, places, padding)
        queries = self.queries.weight[None].repeat(x.shape[0], 1, 1)
        found = torch.zeros_like(queries)
        for layer in self.decoder:
            assert isinstance(layer, DetrDecoderLayer)
            found = layer.decode(found, queries, x, places, padding)
        found = self.norm(found)
        boxes = found
        for number, layer in enumerate(self.boxes):
            boxes = layer(boxes).relu() if number < 2 else layer(boxes)
        return self.labels(found), boxes.sigmoid()


def build_detr(
    *,
    image: int = 64,
    width: int = 32,
    depth: int = 6,
    heads: int = 4,
    queries: int = 10,
    classes: int = 8,
    backbone: int = 8,
) -> TorchModel:
    """Inputs pixels [1, 3, image, image] and a padding mask [1, image, image] (True: padding)."""
    module = Detr(width, depth, heads, queries, classes, backbone)
    return finished(module, 1, 3, image, image, more=(torch.zeros(1, image, image, dtype=torch.bool),))
