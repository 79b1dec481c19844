"""Models that go step by step: GRU and LSTM over a sequence, and GPT-2 on one token with its cache."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .language import TanhGelu
from .randomize import randomize

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]

_LAYERS = {"gru": nn.GRU, "lstm": nn.LSTM}


class Recurrent(nn.Module):
    """Stacked recurrent layers and a linear layer on every step."""

    def __init__(self, kind: str, inputs: int, width: int, depth: int, classes: int):
        super().__init__()
        self.layers = _LAYERS[kind](inputs, width, depth, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[0])


def build_recurrent(
    kind: str,
    *,
    length: int = 100,
    inputs: int = 128,
    width: int = 512,
    depth: int = 2,
    classes: int = 128,
) -> TorchModel:
    """A `gru` or `lstm`; input [1, length, inputs], output [1, length, classes]."""
    generator = torch.Generator().manual_seed(1)
    example = (torch.randn(1, length, inputs, generator=generator),)
    module = Recurrent(kind, inputs, width, depth, classes)
    for parameter in module.layers.parameters():
        with torch.no_grad():
            parameter.uniform_(-(width**-0.5), width**-0.5, generator=generator)
    return randomize(module, example), example


class CachedBlock(nn.Module):
    """A block of GPT-2 for one new token: its key and value join those of the tokens before."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), TanhGelu(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(width, dim=2)
        )
        keys, values = torch.cat((keys, k), 2), torch.cat((values, v), 2)
        scores = torch.matmul(q, keys.transpose(-1, -2)) / math.sqrt(width // self.heads)
        mixed = torch.matmul(scores.softmax(-1), values).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + self.mlp(self.norm2(x)), keys, values


class CachedGpt(nn.Module):
    """GPT-2 on one token; takes and returns keys and values of every block."""

    def __init__(self, vocabulary: int, positions: int, width: int, depth: int, heads: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(CachedBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        place = torch.full_like(input_ids, cache[0].shape[2])
        x = self.tokens(input_ids) + self.positions(place)
        grown: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            x, keys, values = block(x, cache[2 * number], cache[2 * number + 1])
            grown += [keys, values]
        return (F.linear(self.norm(x), self.tokens.weight) / math.sqrt(x.shape[-1]), *grown)


def build_gpt2_decode(
    *,
    vocabulary: int = 50257,
    past: int = 127,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    positions: int = 1024,
) -> TorchModel:
    """One token after `past` others.

    Inputs: the token [1, 1] int64, then per block keys and values [1, heads, past, width / heads]. Outputs:
    logits [1, 1, vocabulary], then keys and values with one more step.
    """
    generator = torch.Generator().manual_seed(1)
    shape = (1, heads, past, width // heads)
    token = torch.randint(0, vocabulary, (1, 1), generator=generator)
    cache = tuple(torch.randn(shape, generator=generator) for _ in range(2 * depth))
    module = CachedGpt(vocabulary, positions, width, depth, heads)
    return randomize(module, (token, *cache)), (token, *cache)
