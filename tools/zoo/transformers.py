"""Vision transformers (ViT, CaiT) and a BERT-like encoder in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .randomize import finished, randomize

TorchModel = tuple[nn.Module, tuple[Tensor, ...]]


class Attention(nn.Module):
    """Multi-head self-attention; `mask` is added to the scores, broadcast over [batch, heads, query, key]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            layer(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(attended.transpose(1, 2).reshape(batch, length, width))


class Layer(nn.Module):
    """One transformer layer, normalized before each half (`pre`) as in ViT or after it as in BERT."""

    def __init__(self, width: int, heads: int, *, pre: bool):
        super().__init__()
        self.pre = pre
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.pre:
            x = x + self.attention(self.norm1(x), mask)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.feed(x))


class VisionTransformer(nn.Module):
    """Patches, a class token, learned positions, `depth` layers, a linear head on the class token."""

    def __init__(self, image: int, patch: int, width: int, depth: int, heads: int, classes: int):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width, generator=generator))
        self.position = nn.Parameter(
            0.5 * torch.randn(1, (image // patch) ** 2 + 1, width, generator=generator)
        )
        self.layers = nn.ModuleList(Layer(width, heads, pre=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])


def build_vit(
    *,
    image: int = 224,
    patch: int = 16,
    width: int = 384,
    depth: int = 12,
    heads: int = 6,
    classes: int = 1000,
) -> TorchModel:
    """A ViT; input [1, 3, image, image], output [1, classes]."""
    module = VisionTransformer(image, patch, width, depth, heads, classes)
    example = (torch.randn(1, 3, image, image, generator=torch.Generator().manual_seed(1)),)
    return randomize(module, example), example


class TalkingHeads(nn.Module):
    """Attention whose heads are mixed by a linear layer before and after the softmax."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        scores = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        mixed = self.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.out((mixed @ v).transpose(1, 2).reshape(batch, length, width))


class ClassAttention(nn.Module):
    """The class token alone asks; it and all patches answer."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        size = width // self.heads
        q = self.query(x[:, 0]).unsqueeze(1).reshape(batch, 1, self.heads, size).permute(0, 2, 1, 3)
        k = self.key(x).reshape(batch, length, self.heads, size).permute(0, 2, 1, 3)
        v = self.value(x).reshape(batch, length, self.heads, size).permute(0, 2, 1, 3)
        mixed = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, 1, width))


class ScaledLayer(nn.Module):
    """A transformer layer whose halves are scaled per channel before they are added."""

    def __init__(self, width: int, attention: nn.Module):
        super().__init__()
        self.attention = attention
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.gamma1, self.gamma2 = (nn.Parameter(torch.full((width,), 0.3)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attention(self.norm1(x))
        return x + self.gamma2 * self.feed(self.norm2(x))

    def ask(self, token: Tensor, patches: Tensor) -> Tensor:
        """The class token after attending to itself and the patches."""
        everything = torch.cat((token, patches), dim=1)
        token = token + self.gamma1 * self.attention(self.norm1(everything))
        return token + self.gamma2 * self.feed(self.norm2(token))


class Cait(nn.Module):
    """Patches through talking-heads layers, then a class token through class-attention layers."""

    def __init__(self, image: int, patch: int, width: int, depth: int, heads: int, classes: int):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width, generator=generator))
        self.position = nn.Parameter(0.5 * torch.randn(1, (image // patch) ** 2, width, generator=generator))
        self.layers = nn.ModuleList(ScaledLayer(width, TalkingHeads(width, heads)) for _ in range(depth))
        self.last = nn.ModuleList(ScaledLayer(width, ClassAttention(width, heads)) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x = layer(x)
        token = self.token.expand(x.shape[0], -1, -1)
        for layer in self.last:
            assert isinstance(layer, ScaledLayer)
            token = layer.ask(token, x)
        return self.head(self.norm(torch.cat((token, x), dim=1))[:, 0])


def build_cait(
    *, image: int = 64, patch: int = 8, width: int = 48, depth: int = 24, heads: int = 4, classes: int = 10
) -> TorchModel:
    """A CaiT (deep, talking heads, class attention); input [1, 3, image, image], output [1, classes]."""
    return finished(Cait(image, patch, width, depth, heads, classes), 1, 3, image, image)


class Encoder(nn.Module):
    """Token and position embeddings and `depth` layers; padding is masked out of the attention."""

    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(Layer(width, heads, pre=False) for _ in range(depth))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.tokens(input_ids) + self.positions(positions))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layers:
            x = layer(x, mask)
        return x


def build_bert(
    *, vocabulary: int = 30522, length: int = 128, width: int = 768, depth: int = 12, heads: int = 12
) -> TorchModel:
    """An encoder; inputs `input_ids` and `attention_mask` [1, length] int64, output [1, length, width]."""
    module = Encoder(vocabulary, length, width, depth, heads)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, vocabulary, (1, length), generator=generator)
    mask = (torch.arange(length) < length - length // 4).long()[None]
    return randomize(module, (ids, mask)), (ids, mask)
