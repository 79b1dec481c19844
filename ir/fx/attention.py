"""Attention, and the rotation of positions."""

from __future__ import annotations

import operator
from typing import Any

import onnx_ir as ir
import torch

from .dtypes import carrier
from .emitter import Emitter, Form, rank, refusal


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    """`[batch, steps, count * size]` as `[batch, count, steps, size]`."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, past_k: torch.Tensor | None,
    past_v: torch.Tensor | None, lengths: torch.Tensor | None, q_heads: int, kv_heads: int, causal: bool,
    scale: float | None, softcap: float, precision: torch.dtype | None, debug: int,
) -> tuple[Any, ...]:  # fmt: skip
    """ONNX's Attention (opset 23) on 3-D or 4-D operands.

    Returns:
        The result, present keys, present values, and the scores of the stage that `debug` asks for.
    """
    flat = q.dim() == 3
    if flat:
        q, k, v = _heads(q, q_heads), _heads(k, kv_heads), _heads(v, kv_heads)
    if past_k is not None and past_v is not None:
        k, v = torch.cat([past_k, k], 2), torch.cat([past_v, v], 2)
    present_k, present_v = k, v
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = torch.repeat_interleave(k, groups, 1), torch.repeat_interleave(v, groups, 1)
    root = (1.0 / q.shape[-1] ** 0.5 if scale is None else scale) ** 0.5
    scores = torch.matmul(q * root, (k * root).transpose(-1, -2))
    stages = [scores]
    steps, total = scores.shape[-2], scores.shape[-1]
    bias = torch.zeros(steps, total, dtype=q.dtype, device=q.device)
    lowest = float("-inf")
    if causal:
        before = torch.zeros((), dtype=torch.int64, device=q.device) + (
            total - steps if past_k is not None else 0
        )
        if lengths is not None:
            before = (lengths - steps).reshape(-1, 1, 1, 1)
        last = torch.arange(steps, device=q.device)[:, None] + before
        seen = torch.arange(total, device=q.device) <= last
        bias = torch.where(seen, bias, torch.full_like(bias, lowest))
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, lowest)
        if mask.shape[-1] < total:
            mask = torch.nn.functional.pad(mask, [0, total - mask.shape[-1]], value=lowest)
        bias = bias + mask
    if lengths is not None:
        alive = torch.arange(total, device=q.device) < lengths.reshape(-1, 1, 1, 1)
        bias = bias + torch.zeros_like(alive, dtype=q.dtype).masked_fill(~alive, lowest)
    masked = scores + bias
    stages.append(masked)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
        masked = scores + bias
    stages.append(masked)
    wide = masked if precision is None else masked.to(precision)
    weights = torch.softmax(wide, -1)
    weights = torch.where(
        torch.isneginf(torch.amax(wide, -1, keepdim=True)), torch.zeros_like(weights), weights
    )
    weights = weights.to(q.dtype)
    stages.append(weights)
    made = torch.matmul(weights, v)
    if flat:
        made = made.transpose(1, 2).reshape(made.shape[0], made.shape[2], -1)
    return made, present_k, present_v, stages[debug]


def _attention(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    values = [emitter.tensor(value) for value in [*node.inputs, *[None] * 7][:7]]
    q_heads, kv_heads = attributes.get_int("q_num_heads", 0), attributes.get_int("kv_num_heads", 0)
    precision = attributes.get_int("softmax_precision", 0)
    softcap = attributes.get_float("softcap", 0.0)
    debug = attributes.get_int("qk_matmul_output_mode", 0)
    made = emitter.call(
        attention, *values, q_heads, kv_heads, bool(attributes.get_int("is_causal", 0)),
        attributes.get_float("scale", None), softcap,
        carrier(ir.DataType(precision)) if precision else None, debug,
    )  # fmt: skip
    return [emitter.call(operator.getitem, made, index) for index in range(len(node.outputs))]


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor | None, heads: int,
    width: int, interleaved: bool,
) -> torch.Tensor:  # fmt: skip
    """Rotary positions (Su et al. 2021).

    `x` is `[batch, heads, steps, size]` or `[batch, steps, heads * size]`.
    """
    flat = x.dim() == 3
    parts = x.reshape(x.shape[0], x.shape[1], heads, -1) if flat else x.transpose(1, 2)
    width = width or parts.shape[-1]
    turned, rest = parts[..., :width], parts[..., width:]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[..., : width // 2].unsqueeze(2), sin[..., : width // 2].unsqueeze(2)
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = torch.chunk(turned, 2, -1)
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    if interleaved:
        turned = torch.stack([real, imaginary], -1).reshape(turned.shape)
    else:
        turned = torch.cat([real, imaginary], -1)
    made = torch.cat([turned, rest], -1)
    return made.reshape(x.shape) if flat else made.transpose(1, 2)


def _rotary(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    heads = attributes.get_int("num_heads", 0)
    if rank(node.inputs[0], node) == 3 and not heads:
        raise refusal(node, "num_heads is missing for an input of rank 3")
    x, cos, sin, *positions = emitter.tensors(node)
    return emitter.call(
        rotate, x, cos, sin, positions[0] if positions else None, heads,
        attributes.get_int("rotary_embedding_dim", 0), bool(attributes.get_int("interleaved", 0)),
    )  # fmt: skip


FORMS: dict[str, Form] = {"Attention": _attention, "RotaryEmbedding": _rotary}
