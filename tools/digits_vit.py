"""A small vision transformer for scikit-learn's digits, and its training."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .digits import Digits, shifted


class Attention(nn.Module):
    """Multi-head self-attention with one packed projection, [n, tokens, width] to the same."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention and two linear layers, each behind a layer norm and added to what came in."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class DigitsViT(nn.Module):
    """Patches of 2x2 pixels, `depth` layers, mean over tokens, linear head; [n, 1, 8, 8] to [n, 10]."""

    def __init__(self, width: int = 48, depth: int = 3, heads: int = 4):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(dim=1))


def train_vit(
    data: Digits, *, epochs: int = 35, seed: int = 0, on_epoch: Callable[[int, int], None] | None = None
) -> DigitsViT:
    """Train on the training part of `data`, one thread, repeatable.

    Args:
        data: Images and labels.
        epochs: Passes over the training images.
        seed: Of initialization, order and augmentation.
        on_epoch: Called with (epoch, epochs) for progress.
    """
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(DigitsViT(), data, epochs, on_epoch)
    finally:
        torch.set_num_threads(threads)


def _train(
    model: DigitsViT, data: Digits, epochs: int, on_epoch: Callable[[int, int], None] | None
) -> DigitsViT:
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=5e-2)
    batches = -(-len(images) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-3, total_steps=epochs * batches, pct_start=0.15
    )
    for epoch in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            moved = torch.rand(len(batch), 1, 1, 1) < 0.5
            seen = torch.where(moved, shifted(images[batch]), images[batch])
            loss = F.cross_entropy(model(seen), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if on_epoch is not None:
            on_epoch(epoch + 1, epochs)
    return model.eval().requires_grad_(False)
