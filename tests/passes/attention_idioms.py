"""Attention as other people write it: functions of queries, keys, values and masks, and what they are traced with."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

BATCH, HEADS, LENGTH, SIZE = 2, 4, 6, 8
LOWEST = torch.finfo(torch.float32).min


class Idiom(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


def heads(count: int = HEADS, length: int = LENGTH) -> torch.Tensor:
    return torch.randn(BATCH, count, length, SIZE)


def llama_with_repeated_heads(q, k, v):
    batch, shared, length, size = k.shape
    repeats = q.shape[1] // shared
    k, v = (
        each[:, :, None].expand(batch, shared, repeats, length, size).reshape(batch, -1, length, size)
        for each in (k, v)
    )
    mask = torch.full((length, length), LOWEST).triu(1)[None, None]
    weights = F.softmax(q @ k.transpose(2, 3) * size**-0.5 + mask, dim=-1, dtype=torch.float32).to(q.dtype)
    return (weights @ v).transpose(1, 2).reshape(batch, length, -1).contiguous()


def gemma_with_soft_cap_and_window(q, k, v):
    scores = torch.tanh(q @ k.transpose(2, 3) * 0.25 / 50.0) * 50.0
    at = torch.arange(q.shape[2])
    keep = (at[None, :] <= at[:, None]) & (at[None, :] > at[:, None] - 3)
    return F.softmax(scores + torch.where(keep, 0.0, LOWEST)[None, None], -1) @ v


def nanogpt_with_masked_fill(q, k, v):
    length = q.shape[2]
    scores = q @ k.transpose(-2, -1) * (1.0 / math.sqrt(k.size(-1)))
    scores = scores.masked_fill(
        torch.tril(torch.ones(length, length)).view(1, 1, length, length) == 0, -math.inf
    )
    return (F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(q.shape[0], length, -1)


def timm_in_one_tensor(x):
    q, k, v = x.reshape(BATCH, LENGTH, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
    return ((q * SIZE**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def clip_by_batched_products(q, k, v):
    q, k, v = (each.reshape(BATCH * HEADS, -1, SIZE) for each in (q * SIZE**-0.5, k, v))
    mask = torch.full((LENGTH, LENGTH), LOWEST).triu(1)
    scores = (torch.bmm(q, k.transpose(1, 2)).view(BATCH, HEADS, LENGTH, LENGTH) + mask).view(
        -1, LENGTH, LENGTH
    )
    return torch.bmm(F.softmax(scores, dim=-1), v).view(BATCH, HEADS, LENGTH, SIZE)


def whisper_with_both_sides_scaled(q, k, v):
    scale = SIZE**-0.25
    return F.softmax(((q * scale) @ (k * scale).transpose(2, 3)).float(), dim=-1).to(q.dtype) @ v


def t5_without_scale(q, k, v, bias, keep):
    scores = q @ k.transpose(3, 2) + (bias + (1.0 - keep[:, None, None, :]) * LOWEST)
    return F.softmax(scores.float(), dim=-1).type_as(scores) @ v


def bloom_with_slopes(q, k, v):
    slopes = torch.tensor([2.0 ** -(2 * head + 2) for head in range(HEADS)])
    alibi = (slopes[:, None] * torch.arange(LENGTH)[None]).repeat(BATCH, 1)[:, None]
    q, k, v = (each.reshape(-1, LENGTH, SIZE) for each in (q, k, v))
    scores = alibi.baddbmm(q, k.transpose(1, 2), beta=1.0, alpha=SIZE**-0.5)
    return torch.bmm(F.softmax(scores, dim=-1), v)


def lucidrains_by_einsum(q, k, v):
    scores = torch.einsum("b h i d, b h j d -> b h i j", q * SIZE**-0.5, k)
    hidden = torch.ones((LENGTH, LENGTH), dtype=torch.bool).triu(1)
    scores = scores.masked_fill(hidden, -torch.finfo(scores.dtype).max)
    scores = scores - scores.amax(dim=-1, keepdim=True).detach()
    return torch.einsum("b h i j, b h j d -> b h i d", scores.softmax(dim=-1), v)


def x_transformers_with_one_head_of_keys(q, k, v):
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    scores = torch.einsum("b h i d, b j d -> b h i j", q, k) * 10
    weights = F.softmax(scores, dim=-1, dtype=torch.float32)
    return torch.einsum("b h i j, b j d -> b h i d", weights, v)


def flax_with_heads_behind_the_length(q, k, v):
    scores = torch.einsum("bqhd,bkhd->bhqk", q / math.sqrt(SIZE), k)
    at = torch.arange(q.shape[1])
    scores = torch.where((at[:, None] >= at[None, :])[None, None], scores, LOWEST)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def decoder_with_a_cache(q, k, v, past_k, past_v):
    k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    at = torch.arange(q.shape[2]) + past_k.shape[2]
    keep = torch.arange(k.shape[2])[None, :] <= at[:, None]
    scores = (q @ k.transpose(-1, -2) / math.sqrt(SIZE)).masked_fill(~keep, LOWEST)
    return scores.softmax(-1) @ v, k, v


def swin_with_shifted_windows(q, k, v, bias, mask):
    scores = q * SIZE**-0.5 @ k.transpose(-2, -1) + bias.unsqueeze(0)
    windows = mask.shape[0]
    scores = scores.view(-1, windows, HEADS, LENGTH, LENGTH) + mask.unsqueeze(1).unsqueeze(0)
    return scores.view(-1, HEADS, LENGTH, LENGTH).softmax(-1) @ v


def one_head_expanded(q, k, v):
    k, v = (each[:, None].expand(-1, q.shape[1], -1, -1) for each in (k, v))
    return F.scaled_dot_product_attention(q, k, v)


def deberta_with_positions(q, k, v, positions):
    scale = 1 / math.sqrt(3 * SIZE)
    return (q @ k.transpose(-1, -2) * scale + q @ positions * scale).softmax(-1) @ v


def in_double(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _behind(length: int = LENGTH) -> torch.Tensor:
    return torch.randn(BATCH, length, HEADS, SIZE)


SAME = (heads(), heads(), heads())
ONE_HEAD = (heads(), torch.randn(BATCH, LENGTH, SIZE), torch.randn(BATCH, LENGTH, SIZE))
KEEP = torch.ones(BATCH, LENGTH)
CASES = {
    llama_with_repeated_heads: (heads(), heads(2), heads(2)),
    gemma_with_soft_cap_and_window: SAME,
    nanogpt_with_masked_fill: SAME,
    timm_in_one_tensor: (torch.randn(BATCH, LENGTH, 3 * HEADS * SIZE),),
    clip_by_batched_products: SAME,
    whisper_with_both_sides_scaled: (heads(), heads(length=9), heads(length=9)),
    t5_without_scale: (*SAME, torch.randn(1, HEADS, LENGTH, LENGTH), KEEP),
    bloom_with_slopes: SAME,
    lucidrains_by_einsum: SAME,
    x_transformers_with_one_head_of_keys: ONE_HEAD,
    flax_with_heads_behind_the_length: (_behind(), _behind(), _behind()),
    decoder_with_a_cache: (heads(length=3), heads(length=3), heads(length=3), heads(), heads()),
    swin_with_shifted_windows: (*SAME, torch.randn(HEADS, LENGTH, LENGTH), torch.zeros(2, LENGTH, LENGTH)),
    one_head_expanded: ONE_HEAD,
    deberta_with_positions: (*SAME, torch.randn(HEADS, SIZE, LENGTH)),
    in_double: tuple(each.double() for each in SAME),
}
