"""The demo's network and its training on scikit-learn's digits: 1,797 real 8x8 scans, shipped with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEST_SHARE = 0.25
WARMUP_SHARE = 0.3
"""Part of the epochs before channels begin to be decayed."""


@dataclass(frozen=True)
class Digits:
    """Images float32 [n, 1, 8, 8] in 0..1 and labels int64 [n], split once and for all by class."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load_digits() -> Digits:
    """The data, a quarter of every class held out for testing."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    data = load()
    images = (data.images[:, None] / 16.0).astype(np.float32)
    labels = data.target.astype(np.int64)
    split = train_test_split(images, labels, test_size=TEST_SHARE, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = split
    return Digits(train_images, train_labels, test_images, test_labels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the input."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(inner)))


class DepthwiseBlock(nn.Module):
    """A strided 3x3 depthwise convolution and a 1x1 convolution, each with batch norm."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.depthwise = nn.Conv2d(c_in, c_in, 3, stride=2, padding=1, groups=c_in, bias=False)
        self.norm1 = nn.BatchNorm2d(c_in)
        self.pointwise = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(self.pointwise(F.relu(self.norm1(self.depthwise(x))))))


class DigitsNet(nn.Module):
    """Stem, residual block, depthwise block, residual block, linear head; [n, 1, 8, 8] to [n, 10]."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        self.block1 = ResidualBlock(width)
        self.down = DepthwiseBlock(width, 2 * width)
        self.block2 = ResidualBlock(2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = self.block2(self.down(self.block1(x)))
        return self.head(x.mean(dim=(2, 3)))

    def channel_groups(self) -> list[list[nn.BatchNorm2d]]:
        """Batch norms whose channels belong together: a residual sum or a depthwise layer ties them."""
        return [
            [self.stem_norm, self.block1.norm2, self.down.norm1],
            [self.block1.norm1],
            [self.down.norm2, self.block2.norm2],
            [self.block2.norm1],
        ]


def train(
    data: Digits,
    *,
    epochs: int = 24,
    ratio: float = 0.5,
    seed: int = 0,
    on_epoch: Callable[[int, int], None] | None = None,
) -> DigitsNet:
    """Train so that `ratio` of the channels can go afterwards.

    After a warm-up the weakest channels of every group are decayed ever more strongly (their batch-norm scale
    and shift go to zero), so that the others learn to do without them before a pruning pass takes them away.

    Args:
        data: only its training part is looked at.
        epochs: passes over the training images.
        ratio: part of each group's channels to decay.
        seed: of initialization, order and augmentation.
        on_epoch: called with (epoch, epochs) for progress.
    """
    torch.manual_seed(seed)
    # Layers this small gain little from a second thread and lose tenfold when its core is busy.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(DigitsNet(), data, epochs, ratio, on_epoch)
    finally:
        torch.set_num_threads(threads)


def _train(
    model: DigitsNet,
    data: Digits,
    epochs: int,
    ratio: float,
    on_epoch: Callable[[int, int], None] | None,
) -> DigitsNet:
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=1e-2)
    batches = -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=8e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        model.train()
        weak = _weakest_channels(model, ratio)
        pressure = max(0.0, (epoch / epochs - WARMUP_SHARE) / (1.0 - WARMUP_SHARE))
        for batch in torch.randperm(len(images)).split(64):
            loss = F.cross_entropy(model(shifted(images[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            _decay(weak, pressure)
        if on_epoch is not None:
            on_epoch(epoch + 1, epochs)
    return model.eval().requires_grad_(False)


def _weakest_channels(model: DigitsNet, ratio: float) -> list[tuple[list[nn.BatchNorm2d], Tensor]]:
    weak = []
    for norms in model.channel_groups():
        strength = torch.stack([norm.weight.detach().abs() for norm in norms]).sum(0)
        weak.append((norms, strength.argsort()[: int(ratio * len(strength))]))
    return weak


def _decay(weak: Sequence[tuple[list[nn.BatchNorm2d], Tensor]], pressure: float) -> None:
    keep = 1.0 - 0.3 * pressure
    with torch.no_grad():
        for norms, channels in weak:
            for norm in norms:
                norm.weight[channels] *= keep
                norm.bias[channels] *= keep


def shifted(images: Tensor) -> Tensor:
    """Each image moved by up to one pixel each way."""
    padded = F.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(images)))
    index = torch.arange(8)
    batch = torch.arange(len(images))[:, None, None]
    moved = padded[batch, 0, (rows[:, None] + index)[:, :, None], (columns[:, None] + index)[:, None, :]]
    return moved[:, None]
