"""Normalizations; those that torch has as layers become its layers."""

from __future__ import annotations

import operator
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from .emitter import Emitter, Form, is_trainable, layer_path, rank, refusal, static_sizes

_BATCH_NORMS = {
    2: torch.nn.BatchNorm1d,
    3: torch.nn.BatchNorm1d,
    4: torch.nn.BatchNorm2d,
    5: torch.nn.BatchNorm3d,
}


def _batch_norm(emitter: Emitter, node: ir.Node) -> Any:
    if node.attributes.get_int("training_mode", 0):
        raise refusal(node, "it is in training mode; export the model in evaluation mode")
    x, *weights = node.inputs
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    names = ["weight", "bias", "running_mean", "running_var"]
    kind = _BATCH_NORMS.get(rank(x, node))
    stored = all(value is not None and value.is_initializer() for value in weights)
    if kind is None or not stored:
        scale, bias, mean, variance = (emitter.tensor(value) for value in weights)
        return emitter.call(F.batch_norm, emitter.tensor(x), mean, variance, scale, bias, False, 0.0, epsilon)
    tensors = [emitter.weight(value) for value in weights]
    # ONNX keeps this share of the old statistics, torch takes this share of the new ones.
    momentum = 1.0 - node.attributes.get_float("momentum", 0.9)
    module = kind(len(tensors[0]), epsilon, round(momentum, 6), dtype=tensors[0].dtype)
    with torch.no_grad():
        for name, tensor in zip(names, tensors, strict=True):
            getattr(module, name).copy_(tensor)
    path = layer_path(emitter, node, weights, names) or str(node.name)
    return emitter.call_module(emitter.submodule(path, module), emitter.tensor(x))


def _layer_norm(emitter: Emitter, node: ir.Node) -> Any:
    if any(each.uses() or each.is_graph_output() for each in node.outputs[1:]):
        return _layer_norm_with_statistics(emitter, node)
    x, scale, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    axis = node.attributes.get_int("axis", -1)
    count = -axis if axis < 0 else rank(x, node) - axis
    shape = static_sizes(scale)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if shape is None or len(shape) != count or (len(shape) > 1 and 1 in shape):
        made = emitter.call(normalized, emitter.tensor(x), list(range(-count, 0)), epsilon)
        return _scaled(emitter, made, scale, bias)
    if bias is not None and static_sizes(bias) != shape:
        made = emitter.call(F.layer_norm, emitter.tensor(x), shape, emitter.tensor(scale), None, epsilon)
        return emitter.call(torch.add, made, emitter.tensor(bias))
    path = layer_path(emitter, node, [scale, bias], ["weight", "bias"])
    if path is None or scale is None or not is_trainable(scale):
        weights = (emitter.tensor(scale), emitter.tensor(bias))
        return emitter.call(F.layer_norm, emitter.tensor(x), shape, *weights, epsilon)
    module = torch.nn.LayerNorm(shape, epsilon, bias=bias is not None)
    module.weight = torch.nn.Parameter(emitter.weight(scale))
    if bias is not None:
        module.bias = torch.nn.Parameter(emitter.weight(bias))
    return emitter.call_module(emitter.submodule(path, module), emitter.tensor(x))


def _scaled(emitter: Emitter, made: Any, scale: ir.Value | None, bias: ir.Value | None) -> Any:
    made = emitter.call(torch.mul, made, emitter.tensor(scale))
    return made if bias is None else emitter.call(torch.add, made, emitter.tensor(bias))


def normalized(x: torch.Tensor, axes: list[int], epsilon: float) -> torch.Tensor:
    """Return x with mean 0 and variance 1 over these axes."""
    centred = x - torch.mean(x, axes, keepdim=True)
    return centred * torch.rsqrt(torch.mean(centred * centred, axes, keepdim=True) + epsilon)


def statistics(x: torch.Tensor, axes: list[int], epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse standard deviation over these axes, kept as axes of size 1."""
    wide = x.to(torch.float32)
    mean = torch.mean(wide, axes, keepdim=True)
    return mean, torch.rsqrt(torch.mean((wide - mean) ** 2, axes, keepdim=True) + epsilon)


def _layer_norm_with_statistics(emitter: Emitter, node: ir.Node) -> Any:
    x, scale, bias = node.inputs[0], node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    axis, total = node.attributes.get_int("axis", -1), rank(node.inputs[0], node)
    axes = list(range(axis % total, total))
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    made = _scaled(emitter, emitter.call(normalized, emitter.tensor(x), axes, epsilon), scale, bias)
    found = emitter.call(statistics, emitter.tensor(x), axes, epsilon)
    return [made, *(emitter.call(operator.getitem, found, index) for index in range(2))]


def instance_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Each channel of each sample by itself."""
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


def _instance_norm(emitter: Emitter, node: ir.Node) -> Any:
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    sizes = static_sizes(node.inputs[0])
    if sizes is not None and len(sizes) > 2 and all(size == 1 for size in sizes[2:]):
        x, scale, bias = emitter.tensors(node)
        return emitter.call(group_norm, x, scale, bias, sizes[1], epsilon)
    return emitter.call(instance_norm, *emitter.tensors(node), epsilon)


def group_norm(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, groups: int, epsilon: float
) -> torch.Tensor:
    """Groups of channels, each by itself; scale and bias are per channel."""
    return F.group_norm(x, groups, scale, bias, epsilon)


def _group_norm(emitter: Emitter, node: ir.Node) -> Any:
    groups, epsilon = node.attributes.get_int("num_groups"), node.attributes.get_float("epsilon", 1e-5)
    x, scale, bias = node.inputs
    path = layer_path(emitter, node, [scale, bias], ["weight", "bias"])
    if path is not None and scale is not None and is_trainable(scale):
        weight = emitter.weight(scale)
        module = torch.nn.GroupNorm(groups, len(weight), epsilon)
        module.weight = torch.nn.Parameter(weight)
        module.bias = torch.nn.Parameter(emitter.weight(bias))
        return emitter.call_module(emitter.submodule(path, module), emitter.tensor(x))
    return emitter.call(group_norm, *emitter.tensors(node), groups, epsilon)


def rms_norm(x: torch.Tensor, scale: torch.Tensor, axes: list[int], epsilon: float) -> torch.Tensor:
    """Return x over the root of its mean square (Zhang and Sennrich 2019), computed in float32."""
    wide = x.to(torch.float32) if x.dtype.itemsize < 4 else x
    made = wide * torch.rsqrt(torch.mean(wide * wide, axes, keepdim=True) + epsilon)
    return made.to(x.dtype) * scale


def _rms_norm(emitter: Emitter, node: ir.Node) -> Any:
    total = rank(node.inputs[0], node)
    axes = list(range(node.attributes.get_int("axis", -1) % total, total))
    return emitter.call(rms_norm, *emitter.tensors(node), axes, node.attributes.get_float("epsilon", 1e-5))


def lp_normalized(x: torch.Tensor, axis: int, p: int) -> torch.Tensor:
    """Return x over its p-norm along an axis; 0 where that is 0."""
    norm = torch.linalg.vector_norm(x, p, axis, True)
    return torch.where(
        norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm)
    )


def _lp_norm(emitter: Emitter, node: ir.Node) -> Any:
    axis, p = node.attributes.get_int("axis", -1), node.attributes.get_int("p", 2)
    return emitter.call(lp_normalized, emitter.tensor(node.inputs[0]), axis, p)


def local_response_norm(x: torch.Tensor, size: int, alpha: float, beta: float, bias: float) -> torch.Tensor:
    """Return x over a power of the squares of neighbouring channels (Krizhevsky et al. 2012)."""
    before = (size - 1) // 2
    squares = F.pad((x * x).unsqueeze(1), [0, 0] * (x.dim() - 2) + [before, size - 1 - before])
    total = torch.sum(squares.unfold(2, size, 1), -1).squeeze(1)
    return x / torch.pow(bias + alpha / size * total, beta)


def _lrn(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    numbers = [
        attributes.get_float(name, value) for name, value in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0))
    ]
    return emitter.call(
        local_response_norm, emitter.tensor(node.inputs[0]), attributes.get_int("size"), *numbers
    )


def _mean_variance(emitter: Emitter, node: ir.Node) -> Any:
    axes = list(node.attributes.get_ints("axes", [0, 2, 3]))
    return emitter.call(mean_variance, emitter.tensor(node.inputs[0]), axes)


def mean_variance(x: torch.Tensor, axes: list[int]) -> torch.Tensor:
    """Mean 0 and variance 1 over these axes; epsilon is added to the deviation, as ONNX defines it."""
    mean = torch.mean(x, axes, keepdim=True)
    deviation = torch.sqrt(torch.mean(x * x, axes, keepdim=True) - mean * mean)
    return (x - mean) / (deviation + 1e-9)


FORMS: dict[str, Form] = {
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
    "LpNormalization": _lp_norm,
    "LRN": _lrn,
    "MeanVarianceNormalization": _mean_variance,
}
