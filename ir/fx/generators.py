"""Random numbers, dropout, windows and Fourier transforms."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from .dtypes import carrier
from .emitter import Emitter, Form, refusal


def normal(
    shape: list[Any], mean: float, deviation: float, dtype: torch.dtype, like: torch.Tensor
) -> torch.Tensor:
    """Normally distributed numbers from torch's generator."""
    return torch.randn(shape, dtype=dtype, device=like.device) * deviation + mean


def uniform(
    shape: list[Any], low: float, high: float, dtype: torch.dtype, like: torch.Tensor
) -> torch.Tensor:
    """Uniformly distributed numbers from torch's generator."""
    return torch.rand(shape, dtype=dtype, device=like.device) * (high - low) + low


def _random(function: Any, first: tuple[str, float], second: tuple[str, float]) -> Form:
    def form(emitter: Emitter, node: ir.Node) -> Any:
        attributes = node.attributes
        numbers = [attributes.get_float(*each) for each in (first, second)]
        if node.inputs:
            shape: Any = emitter.call(list_of_sizes, emitter.tensor(node.inputs[0]))
            like = emitter.tensor(node.inputs[0])
        else:
            shape, like = list(attributes.get_ints("shape")), emitter.device()
        return emitter.call(function, shape, *numbers, carrier(node.outputs[0].dtype), like)

    return form


def list_of_sizes(x: torch.Tensor) -> list[Any]:
    """The shape of a tensor."""
    return list(x.shape)


def bernoulli(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """1 with the probability that x gives."""
    return torch.bernoulli(x).to(dtype)


def multinomial(x: torch.Tensor, count: int, dtype: torch.dtype) -> torch.Tensor:
    """Classes drawn by unnormalized log-probabilities."""
    return torch.multinomial(torch.softmax(x, -1), count, replacement=True).to(dtype)


def _dropout(emitter: Emitter, node: ir.Node) -> Any:
    x = emitter.tensor(node.inputs[0])
    ratio = emitter.literal(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else 0.5
    if ratio is None:
        raise refusal(node, "its ratio is computed while it runs")
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        mode = emitter.literal(node.inputs[2]) if len(node.inputs) > 2 else None
        if mode is not None and mode.any() and float(ratio):
            raise refusal(node, "its mask is read while it is in training mode")
        return [x, emitter.call(torch.ones_like, x, dtype=torch.bool)]
    module = torch.nn.Dropout(float(ratio))
    return emitter.call_module(emitter.submodule(str(node.name), module), x)


def window(kind: str, size: Any, periodic: bool, dtype: torch.dtype, like: torch.Tensor) -> torch.Tensor:
    """A Hann, Hamming or Blackman window as ONNX defines it."""
    steps = torch.arange(size, dtype=torch.float64, device=like.device)
    angle = 2 * torch.pi * steps / (size if periodic else size - 1)
    a, b, c = {"Hann": (0.5, 0.5, 0.0), "Hamming": (25 / 46, 21 / 46, 0.0), "Blackman": (0.42, 0.5, 0.08)}[
        kind
    ]
    return (a - b * torch.cos(angle) + c * torch.cos(2 * angle)).to(dtype)


def _window(emitter: Emitter, node: ir.Node) -> Any:
    assert node.inputs[0] is not None
    kind, periodic = node.op_type.removesuffix("Window"), bool(node.attributes.get_int("periodic", 1))
    dtype = carrier(ir.DataType(node.attributes.get_int("output_datatype", 1)))
    return emitter.call(window, kind, emitter.host(node.inputs[0]), periodic, dtype, emitter.device())


def fourier(x: torch.Tensor, length: Any, axis: int, inverse: bool, onesided: bool) -> torch.Tensor:
    """ONNX's DFT; the last axis holds real and imaginary part."""
    axis = axis + x.dim() if axis < 0 else axis
    real = x.shape[-1] == 1
    if onesided and inverse:
        made = torch.fft.irfft(torch.view_as_complex(x.contiguous()), length, axis)
        return made.unsqueeze(-1)
    data = x[..., 0] if real else torch.view_as_complex(x.contiguous())
    if onesided:
        return torch.view_as_real(torch.fft.rfft(data, length, axis))
    return torch.view_as_real((torch.fft.ifft if inverse else torch.fft.fft)(data, length, axis))


def _fourier(emitter: Emitter, node: ir.Node) -> Any:
    axis = emitter.known_ints(node, 2, "axis")
    length = emitter.host(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    flags = [bool(node.attributes.get_int(name, 0)) for name in ("inverse", "onesided")]
    return emitter.call(fourier, emitter.tensor(node.inputs[0]), length, axis[0] if axis else -2, *flags)


def short_time(
    x: torch.Tensor, hop: Any, shape: torch.Tensor | None, length: Any, onesided: bool
) -> torch.Tensor:
    """ONNX's STFT of `[batch, steps, 1 or 2]`: `[batch, frames, bins, 2]`."""
    data = (
        x[..., 0]
        if x.dim() == 3 and x.shape[-1] == 1
        else torch.view_as_complex(x.contiguous())
        if x.dim() == 3
        else x
    )
    size = shape.shape[0] if shape is not None else length
    frames = data.unfold(1, size, hop)
    if shape is not None:
        frames = frames * shape
    made = torch.fft.rfft(frames) if onesided and not frames.is_complex() else torch.fft.fft(frames)
    return torch.view_as_real(made[..., : size // 2 + 1] if onesided else made)


def _short_time(emitter: Emitter, node: ir.Node) -> Any:
    x, hop, shape, length = [*node.inputs, None, None][:4]
    assert hop is not None
    return emitter.call(
        short_time, emitter.tensor(x), emitter.host(hop), emitter.tensor(shape),
        None if length is None else emitter.host(length), bool(node.attributes.get_int("onesided", 1)),
    )  # fmt: skip


def _bernoulli(emitter: Emitter, node: ir.Node) -> Any:
    return emitter.call(bernoulli, emitter.tensor(node.inputs[0]), carrier(node.outputs[0].dtype))


def _multinomial(emitter: Emitter, node: ir.Node) -> Any:
    count = node.attributes.get_int("sample_size", 1)
    return emitter.call(multinomial, emitter.tensor(node.inputs[0]), count, carrier(node.outputs[0].dtype))


FORMS: dict[str, Form] = {
    **dict.fromkeys(("RandomNormal", "RandomNormalLike"), _random(normal, ("mean", 0.0), ("scale", 1.0))),
    **dict.fromkeys(("RandomUniform", "RandomUniformLike"), _random(uniform, ("low", 0.0), ("high", 1.0))),
    "Bernoulli": _bernoulli,
    "Multinomial": _multinomial,
    "Dropout": _dropout,
    **dict.fromkeys(("HannWindow", "HammingWindow", "BlackmanWindow"), _window),
    "DFT": _fourier,
    "STFT": _short_time,
}
