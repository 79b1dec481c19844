"""What dense prediction puts behind a backbone, and blocks that convolutional networks are made of elsewhere.

Heads take feature maps of published sizes as inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mobile import SqueezeExcite, conv_norm_act
from .randomize import finished

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


class ResNextBlock(nn.Module):
    """A bottleneck whose 3x3 convolution has 32 groups of few channels."""

    def __init__(self, inputs: int, wide: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            conv_norm_act(inputs, wide, act=nn.ReLU()),
            conv_norm_act(wide, wide, 3, stride, 32, nn.ReLU()),
            conv_norm_act(wide, outputs),
        )
        self.shortcut = conv_norm_act(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnext(*, image: int = 56, width: int = 128, stages: int = 4) -> TorchModel:
    """One block of every stage of ResNeXt-50 32x4d."""
    blocks, inputs = [], 64
    for stage in range(stages):
        wide = width << stage
        blocks.append(ResNextBlock(inputs, wide, 2 * wide, 1 if stage == 0 else 2))
        inputs = 2 * wide
    return finished(nn.Sequential(*blocks), 1, 64, image, image)


class DeepLabHead(nn.Module):
    """DeepLabV3+: atrous pyramid, upsampling, the finer features joined, upsampling again."""

    def __init__(self, inputs: int, low: int, width: int, classes: int):
        super().__init__()
        self.one = conv_norm_act(inputs, width, act=nn.ReLU())
        self.atrous = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inputs, width, 3, padding=rate, dilation=rate, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for rate in (12, 24, 36)
        )
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(inputs, width, 1), nn.ReLU())
        self.project = conv_norm_act(5 * width, width, act=nn.ReLU())
        self.low = conv_norm_act(low, 48, act=nn.ReLU())
        self.last = conv_norm_act(width + 48, width, 3, act=nn.ReLU())
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor, fine: Tensor) -> Tensor:
        size = x.shape[2:]
        pooled = F.interpolate(self.pool(x), size=size, mode="bilinear", align_corners=False)
        joined = torch.cat([self.one(x), *(branch(x) for branch in self.atrous), pooled], 1)
        wide = F.interpolate(self.project(joined), size=fine.shape[2:], mode="bilinear", align_corners=False)
        answer = self.out(self.last(torch.cat([wide, self.low(fine)], 1)))
        return F.interpolate(answer, scale_factor=4.0, mode="bilinear", align_corners=False)


def deeplab_head(*, side: int = 28, inputs: int = 320, width: int = 128, classes: int = 21) -> TorchModel:
    """DeepLabV3+'s head on MobileNetV2's features of stride 16."""
    fine = torch.randn(1, 24, 4 * side, 4 * side, generator=torch.Generator().manual_seed(2))
    return finished(DeepLabHead(inputs, 24, width, classes), 1, inputs, side, side, more=(fine,))


class SegformerHead(nn.Module):
    """SegFormer's decoder: a linear layer per level, all levels enlarged to the finest and joined."""

    def __init__(self, widths: tuple[int, ...], width: int, classes: int):
        super().__init__()
        self.levels = nn.ModuleList(nn.Linear(each, width) for each in widths)
        self.fuse = conv_norm_act(width * len(widths), width, act=nn.ReLU())
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, *features: Tensor) -> Tensor:
        size, parts = features[0].shape[2:], []
        for layer, x in zip(self.levels, features, strict=True):
            batch, _, height, width = x.shape
            y = layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(batch, -1, height, width)
            parts.append(F.interpolate(y, size=size, mode="bilinear", align_corners=False))
        return self.out(self.fuse(torch.cat(parts[::-1], 1)))


def segformer_head(*, side: int = 64, width: int = 256, classes: int = 150) -> TorchModel:
    """SegFormer-B0's decoder on 256x256 images."""
    widths = (32, 64, 160, 256)
    generator = torch.Generator().manual_seed(2)
    more = tuple(
        torch.randn(1, each, side >> level, side >> level, generator=generator)
        for level, each in enumerate(widths)
        if level
    )
    return finished(SegformerHead(widths, width, classes), 1, widths[0], side, side, more=more)


class RetinaHead(nn.Module):
    """RetinaNet's class and box towers over all levels, group norms, everything joined and sorted."""

    def __init__(self, width: int, classes: int, anchors: int, best: int):
        super().__init__()
        self.classes, self.best = classes, best
        self.class_tower, self.box_tower = self._tower(width), self._tower(width)
        self.scores = nn.Conv2d(width, anchors * classes, 3, padding=1)
        self.boxes = nn.Conv2d(width, anchors * 4, 3, padding=1)

    @staticmethod
    def _tower(width: int) -> nn.Module:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(32, width), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, *levels: Tensor) -> tuple[Tensor, Tensor]:
        scores, boxes = [], []
        for x in levels:
            batch = x.shape[0]
            score = self.scores(self.class_tower(x)).permute(0, 2, 3, 1).reshape(batch, -1, self.classes)
            scores.append(torch.sigmoid(score))
            boxes.append(self.boxes(self.box_tower(x)).permute(0, 2, 3, 1).reshape(batch, -1, 4))
        best, place = torch.cat(scores, 1).flatten(1).topk(self.best)
        chosen = torch.cat(boxes, 1)[0, place[0] // self.classes]
        return best, chosen


def retina_head(
    *, side: int = 32, width: int = 128, classes: int = 20, anchors: int = 9, best: int = 100
) -> TorchModel:
    """RetinaNet's heads on three levels of a feature pyramid."""
    generator = torch.Generator().manual_seed(2)
    more = tuple(torch.randn(1, width, side >> k, side >> k, generator=generator) for k in (1, 2))
    return finished(RetinaHead(width, classes, anchors, best), 1, width, side, side, more=more)


class TimeBlock(nn.Module):
    """A residual block of a diffusion U-Net: group norm, SiLU, convolution, twice, with a time embedding."""

    def __init__(self, inputs: int, outputs: int, time: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(32, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.time = nn.Linear(time, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class DiffusionNet(nn.Module):
    """Two levels of a diffusion U-Net with attention at the bottom."""

    def __init__(self, width: int, time: int):
        super().__init__()
        self.enter, self.one = nn.Conv2d(4, width, 3, padding=1), TimeBlock(width, width, time)
        self.down, self.two = nn.Conv2d(width, width, 3, 2, 1), TimeBlock(width, 2 * width, time)
        self.norm, self.qkv = nn.GroupNorm(32, 2 * width), nn.Conv2d(2 * width, 6 * width, 1)
        self.mix, self.up = nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(2 * width, width, 3, padding=1)
        self.three, self.last = TimeBlock(2 * width, width, time), nn.GroupNorm(32, width)
        self.out = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        one = self.one(self.enter(x), time)
        two = self.two(self.down(one), time)
        batch, channels, height, width = two.shape
        q, k, v = self.qkv(self.norm(two)).reshape(batch, 3, 8, channels // 8, height * width).unbind(1)
        mixed = F.scaled_dot_product_attention(*(each.transpose(2, 3) for each in (q, k, v)))
        two = two + self.mix(mixed.transpose(2, 3).reshape(two.shape))
        up = self.up(F.interpolate(two, scale_factor=2.0, mode="nearest"))
        return self.out(F.silu(self.last(self.three(torch.cat([up, one], 1), time))))


def diffusion_unet(*, side: int = 32, width: int = 128, time: int = 256) -> TorchModel:
    """Two levels of a latent-diffusion U-Net."""
    embedding = torch.randn(1, time, generator=torch.Generator().manual_seed(2))
    return finished(DiffusionNet(width, time), 1, 4, side, side, more=(embedding,))


class Shuffled(nn.Module):
    """A shuffle unit of any number of groups, odd ones included."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.groups = groups
        self.first = conv_norm_act(width, width, 1, groups=groups, act=nn.ReLU())
        self.depthwise = conv_norm_act(width, width, 3, groups=width)
        self.last = conv_norm_act(width, width, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(self.first(x), self.groups)
        return torch.relu(x + self.last(self.depthwise(y)))


def shuffle_blocks(*, side: int = 28, width: int = 240, groups: int = 3, depth: int = 4) -> TorchModel:
    """ShuffleNetV1's units with three groups."""
    return finished(nn.Sequential(*(Shuffled(width, groups) for _ in range(depth))), 1, width, side, side)


class Segmenter(nn.Module):
    """A decoder of transposed convolutions: 4x4 of stride 2, 3x3 with output padding, grouped, 2x2."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(width, width // 2, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 2, width // 4, 3, 2, 1, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 4, width // 4, 4, 2, 1, groups=width // 4, bias=False),
            nn.Conv2d(width // 4, width // 4, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width // 4, classes, 2, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def transposed_decoder(*, side: int = 14, width: int = 256, classes: int = 19) -> TorchModel:
    """Transposed convolutions of four kinds, from stride 16 to full size."""
    return finished(Segmenter(width, classes), 1, width, side, side)


def excited_blocks(*, side: int = 14, width: int = 672, depth: int = 6) -> TorchModel:
    """Squeeze-and-excite as EfficientNet has it, and little else."""
    layers = [
        nn.Sequential(
            conv_norm_act(width, width, 5, 1, width, nn.SiLU()),
            SqueezeExcite(width, nn.SiLU(), nn.Sigmoid(), width // 24),
        )
        for _ in range(depth)
    ]
    return finished(nn.Sequential(*layers), 1, width, side, side)
