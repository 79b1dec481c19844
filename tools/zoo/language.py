"""Sequence models written the way their originals are: GPT-2, Llama and the encoder of Whisper."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .randomize import randomize

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


def _tokens(vocabulary: int, length: int, batch: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(0, vocabulary, (batch, length), generator=generator),)


class TanhGelu(nn.Module):
    """GPT-2's `gelu_new`, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class GptBlock(nn.Module):
    """Causal attention with one projection for q, k and v; masking by a stored triangle."""

    triangle: Tensor

    def __init__(self, width: int, heads: int, length: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), TanhGelu(), nn.Linear(4 * width, width))
        self.register_buffer("triangle", torch.tril(torch.ones(length, length, dtype=torch.bool))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).permute(0, 2, 1, 3)
            for part in self.qkv(self.norm1(x)).split(width, dim=2)
        )
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(width // self.heads)
        lowest = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = torch.where(self.triangle[:, :, :length, :length], scores, lowest)
        mixed = torch.matmul(scores.softmax(-1), v).permute(0, 2, 1, 3).contiguous()
        x = x + self.out(mixed.view(batch, length, width))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """Token and position embeddings, blocks, and the embedding once more as output layer."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(GptBlock(width, heads, length) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(0, input_ids.shape[-1], dtype=torch.long, device=input_ids.device)[None]
        x = self.tokens(input_ids) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.tokens.weight) / math.sqrt(x.shape[-1])


def build_gpt2(
    *,
    vocabulary: int = 500,
    length: int = 32,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    batch: int = 1,
) -> TorchModel:
    """Input `input_ids` [batch, length] int64, output [batch, length, vocabulary]."""
    example = _tokens(vocabulary, length, batch)
    return randomize(Gpt(vocabulary, length, width, depth, heads), example), example


class RmsNorm(nn.Module):
    """Written out as in Llama."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        squares = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        return self.weight * (x.to(torch.float32) * torch.rsqrt(squares + 1e-6)).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class LlamaBlock(nn.Module):
    """Grouped-query attention with rotary positions and a gated MLP."""

    def __init__(self, width: int, heads: int, groups: int):
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.norm1, self.norm2 = RmsNorm(width), RmsNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, groups * self.size, bias=False)
        self.value = nn.Linear(width, groups * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate, self.up = (nn.Linear(width, 3 * width, bias=False) for _ in range(2))
        self.down = nn.Linear(3 * width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        h = self.norm1(x)
        q = self.query(h).view(batch, length, self.heads, self.size).transpose(1, 2)
        k = self.key(h).view(batch, length, self.groups, self.size).transpose(1, 2)
        v = self.value(h).view(batch, length, self.groups, self.size).transpose(1, 2)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (self._repeated(each) for each in (k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) * self.size**-0.5 + mask
        mixed = torch.matmul(scores.softmax(-1, dtype=torch.float32).to(q.dtype), v)
        x = x + self.out(mixed.transpose(1, 2).contiguous().reshape(batch, length, width))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))

    def _repeated(self, x: Tensor) -> Tensor:
        batch, groups, length, size = x.shape
        times = self.heads // groups
        x = x[:, :, None, :, :].expand(batch, groups, times, length, size)
        return x.reshape(batch, groups * times, length, size)


class Llama(nn.Module):
    """Embedding, blocks, norm, output layer; positions and mask are computed in the graph."""

    frequencies: Tensor

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, groups: int):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, groups) for _ in range(depth))
        self.norm = RmsNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        size = width // heads
        self.register_buffer("frequencies", 1.0 / (10000 ** (torch.arange(0, size, 2).float() / size)))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids)
        places = torch.arange(input_ids.shape[1], device=x.device)
        grid = self.frequencies[None, :, None].expand(1, -1, 1) @ places[None, None, :].float()
        angles = torch.cat([grid.transpose(1, 2)] * 2, -1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        hidden = places[None, :] > places[:, None]
        mask = torch.zeros(hidden.shape, dtype=x.dtype).masked_fill(hidden, torch.finfo(x.dtype).min)
        for block in self.blocks:
            x = block(x, cos, sin, mask[None, None])
        return self.head(self.norm(x))


def build_llama(
    *,
    vocabulary: int = 500,
    length: int = 32,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    groups: int = 2,
    batch: int = 1,
) -> TorchModel:
    """Input `input_ids` [batch, length] int64, output [batch, length, vocabulary]."""
    example = _tokens(vocabulary, length, batch)
    return randomize(Llama(vocabulary, width, depth, heads, groups), example), example


class WhisperLayer(nn.Module):
    """Attention with a key projection without bias, and an MLP with exact GELU."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            self._heads(self.query(h) * self.scale),
            self._heads(self.key(h)),
            self._heads(self.value(h)),
        )
        mixed = torch.matmul(torch.matmul(q, k.transpose(2, 3)).softmax(-1), v)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        h = F.dropout(F.gelu(self.widen(self.norm2(x))), 0.1, self.training)
        return x + self.narrow(h)


class Whisper(nn.Module):
    """Two convolutions over the spectrogram, positions, layers."""

    positions: Tensor

    def __init__(self, bands: int, frames: int, width: int, depth: int, heads: int):
        super().__init__()
        self.conv1 = nn.Conv1d(bands, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        angles = torch.arange(frames // 2)[:, None] * torch.exp(-torch.arange(width // 2) / 3.0)[None]
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], 1))
        self.layers = nn.ModuleList(WhisperLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(features)))).permute(0, 2, 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def build_whisper(
    *, bands: int = 40, frames: int = 100, width: int = 64, depth: int = 4, heads: int = 4
) -> TorchModel:
    """Whisper's encoder; input [1, bands, frames], output [1, frames / 2, width]."""
    example = (torch.randn(1, bands, frames, generator=torch.Generator().manual_seed(1)),)
    return randomize(Whisper(bands, frames, width, depth, heads), example), example
