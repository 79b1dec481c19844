"""Convolutions and poolings."""

from __future__ import annotations

import math
import operator
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F

from .emitter import Emitter, Form, is_trainable, layer_path, rank, refusal, static_sizes

_CONVOLUTIONS: Any = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MODULES: Any = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
_TRANSPOSED_MODULES: Any = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)


class Window:
    """Kernel, strides, dilations and pads of a convolution or pooling.

    Attributes:
        begin: paddings before each spatial axis.
        end: paddings after each.
    """

    def __init__(self, node: ir.Node, kernel: list[int]) -> None:
        count = len(kernel)
        attributes = node.attributes
        self.kernel = kernel
        self.strides = list(attributes.get_ints("strides", [1] * count))
        self.dilations = list(attributes.get_ints("dilations", [1] * count))
        pads = list(attributes.get_ints("pads", [0] * 2 * count))
        self.begin, self.end = pads[:count], pads[count:]
        automatic = attributes.get_string("auto_pad", "NOTSET")
        if automatic == "VALID":
            self.begin, self.end = [0] * count, [0] * count
        elif automatic.startswith("SAME") and node.op_type != "ConvTranspose":
            sizes = static_sizes(node.inputs[0])
            if sizes is None:
                raise refusal(node, f"auto_pad={automatic} needs static sizes")
            self._pad_same(sizes[2:], upper=automatic == "SAME_UPPER")

    def _pad_same(self, sizes: list[int], upper: bool) -> None:
        for axis, size in enumerate(sizes):
            stride = self.strides[axis]
            reach = (self.kernel[axis] - 1) * self.dilations[axis] + 1
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
            less, more = total // 2, total - total // 2
            self.begin[axis], self.end[axis] = (less, more) if upper else (more, less)

    @property
    def even(self) -> bool:
        """Whether both sides of every axis are padded alike."""
        return self.begin == self.end

    @property
    def spread(self) -> list[int]:
        """Paddings as `F.pad` takes them, last axis first."""
        pairs = zip(self.begin[::-1], self.end[::-1], strict=True)
        return [each for pair in pairs for each in pair]


def _kernel(node: ir.Node) -> list[int]:
    given = node.attributes.get_ints("kernel_shape", [])
    if given:
        return list(given)
    sizes = static_sizes(node.inputs[1])
    if sizes is None:
        raise refusal(node, "the kernel's size is not known")
    return sizes[2:]


def _parts(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None, ir.Value | None, Window, int, int]:
    """Data, weight, bias, window, spatial axes and groups of a convolution, transposed or not."""
    window = Window(node, _kernel(node))
    count = len(window.kernel)
    if not 1 <= count <= 3:
        raise refusal(node, f"torch has no convolution over {count} axes")
    x, weight, bias = (*node.inputs, None)[:3]
    return x, weight, bias, window, count, node.attributes.get_int("group", 1)


def _conv(emitter: Emitter, node: ir.Node) -> Any:
    x, weight, bias, window, count, groups = _parts(node)
    tensor = emitter.tensor(x)
    if not window.even:
        tensor = emitter.call(F.pad, tensor, window.spread)
    pads = window.begin if window.even else [0] * count
    path = layer_path(emitter, node, [weight, bias], ["weight", "bias"])
    if path is not None and weight is not None and is_trainable(weight):
        stored = emitter.weight(weight)
        made = _MODULES[count - 1](
            stored.shape[1] * groups, stored.shape[0], window.kernel, window.strides, pads, window.dilations,
            groups, bias is not None, device="meta",
        )  # fmt: skip
        return emitter.call_module(emitter.submodule(path, _filled(emitter, made, weight, bias)), tensor)
    return emitter.call(
        _CONVOLUTIONS[count - 1], tensor, emitter.tensor(weight), emitter.tensor(bias), window.strides, pads,
        window.dilations, groups,
    )  # fmt: skip


def _filled(
    emitter: Emitter, module: torch.nn.Module, weight: ir.Value | None, bias: ir.Value | None
) -> torch.nn.Module:
    """Puts the stored weights into a module that was made without any."""
    module.weight = torch.nn.Parameter(emitter.weight(weight))
    if bias is not None:
        module.bias = torch.nn.Parameter(emitter.weight(bias))
    return module


def conv_transposed(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, strides: list[int],
    output_padding: list[int], groups: int, dilations: list[int], begin: list[int], end: list[int],
) -> torch.Tensor:  # fmt: skip
    """A transposed convolution whose result is cut unevenly, or enlarged: there only the bias is."""
    made = _TRANSPOSED[x.dim() - 3](x, weight, None, strides, 0, 0, groups, dilations)
    spread: list[int] = []
    for before, after, extra in zip(begin[::-1], end[::-1], output_padding[::-1], strict=True):
        spread += [-before, extra - after]
    made = F.pad(made, spread)
    return made if bias is None else made + bias.reshape([1, -1] + [1] * (x.dim() - 2))


def _conv_transpose(emitter: Emitter, node: ir.Node) -> Any:
    x, weight, bias, window, count, groups = _parts(node)
    output_padding = list(node.attributes.get_ints("output_padding", [0] * count))
    _fit_output(node, window, output_padding)
    torch_like = all(extra < max(stride, dilation) for extra, stride, dilation in zip(
        output_padding, window.strides, window.dilations, strict=True))  # fmt: skip
    if not window.even or not torch_like or min(window.begin) < 0:
        return emitter.call(
            conv_transposed, *(emitter.tensor(each) for each in (x, weight, bias)),
            window.strides, output_padding, groups, window.dilations, window.begin, window.end,
        )  # fmt: skip
    path = layer_path(emitter, node, [weight, bias], ["weight", "bias"])
    if path is not None and weight is not None and is_trainable(weight):
        stored = emitter.weight(weight)
        made = _TRANSPOSED_MODULES[count - 1](
            stored.shape[0], stored.shape[1] * groups, window.kernel, window.strides, window.begin,
            output_padding, groups, bias is not None, window.dilations, device="meta",
        )  # fmt: skip
        path = emitter.submodule(path, _filled(emitter, made, weight, bias))
        return emitter.call_module(path, emitter.tensor(x))
    return emitter.call(
        _TRANSPOSED[count - 1], *(emitter.tensor(each) for each in (x, weight, bias)), window.strides,
        window.begin, output_padding, groups, window.dilations,
    )  # fmt: skip


def _fit_output(node: ir.Node, window: Window, output_padding: list[int]) -> None:
    """Paddings that give the output the size that `output_shape` or `auto_pad` asks for."""
    wanted = list(node.attributes.get_ints("output_shape", []))
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if not wanted and not automatic.startswith("SAME"):
        return
    sizes = static_sizes(node.inputs[0])
    if sizes is None:
        raise refusal(node, "output_shape and auto_pad need static sizes")
    sizes = sizes[2:]
    wanted = wanted[-len(sizes) :] or [
        size * stride for size, stride in zip(sizes, window.strides, strict=True)
    ]
    for axis, size in enumerate(sizes):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        total = window.strides[axis] * (size - 1) + output_padding[axis] + reach - wanted[axis]
        half, more = total // 2, total - total // 2
        first = 0 if total < 0 else half if automatic == "SAME_UPPER" else more
        window.begin[axis], window.end[axis] = first, total - first


_POOLS: dict[str, Any] = {
    "MaxPool": (F.max_pool1d, F.max_pool2d, F.max_pool3d),
    "AveragePool": (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d),
}


def _overhang(window: Window, sizes: tuple[Any, ...], ceil: bool) -> list[int]:
    """Padding at the ends that makes every window whole that ONNX counts."""
    extra = []
    for axis, size in enumerate(sizes):
        reach = (window.kernel[axis] - 1) * window.dilations[axis] + 1
        padded = size + window.begin[axis] + window.end[axis]
        steps = (padded - reach) / window.strides[axis]
        count = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        if ceil and (count - 1) * window.strides[axis] >= size + window.begin[axis]:
            count -= 1
        extra.append(max((count - 1) * window.strides[axis] + reach - padded, 0))
    return extra


def _windows(x: torch.Tensor, kernel: list[int], strides: list[int], dilations: list[int]) -> torch.Tensor:
    """All windows of a padded input: `[N, C, out..., kernel...]`."""
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), start=2):
        x = x.unfold(axis, (size - 1) * dilation + 1, stride)
        x = x[..., ::dilation]
    return x


def pooled_windows(
    x: torch.Tensor, kind: str, kernel: list[int], strides: list[int], dilations: list[int], begin: list[int],
    end: list[int], ceil: bool, include_pad: bool, p: float,
) -> torch.Tensor:  # fmt: skip
    """Poolings that torch's own do not cover: dilated, unevenly padded, any power, any count of axes."""
    window = _Pads(kernel, strides, dilations, begin, end)
    extra = _overhang(window, tuple(x.shape[2:]), ceil)  # type: ignore[arg-type]
    spread = window.with_end([a + b for a, b in zip(end, extra, strict=True)])
    axes = list(range(x.dim(), x.dim() + len(kernel)))
    if kind == "MaxPool":
        lowest = -math.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
        return torch.amax(_windows(F.pad(x, spread, value=lowest), kernel, strides, dilations), axes)
    parts = _windows(F.pad(x, spread), kernel, strides, dilations)
    if kind == "LpPool":
        return torch.pow(torch.sum(torch.pow(torch.abs(parts), p), axes), 1.0 / p)
    counted = torch.ones_like(x[:1, :1])
    if include_pad:
        counted = F.pad(counted, window.with_end(end), value=1.0)
        counted = F.pad(counted, _Pads(kernel, strides, dilations, [0] * len(kernel), extra).spread)
    else:
        counted = F.pad(counted, spread)
    return torch.sum(parts, axes) / torch.sum(_windows(counted, kernel, strides, dilations), axes)


class _Pads(Window):
    """A window that is known by its numbers."""

    def __init__(
        self, kernel: list[int], strides: list[int], dilations: list[int], begin: list[int], end: list[int]
    ) -> None:
        self.kernel, self.strides, self.dilations = kernel, strides, dilations
        self.begin, self.end = begin, end

    def with_end(self, end: list[int]) -> list[int]:
        """The spread with other paddings at the ends."""
        return _Pads(self.kernel, self.strides, self.dilations, self.begin, end).spread


def _pool(emitter: Emitter, node: ir.Node) -> Any:
    attributes = node.attributes
    window = Window(node, list(attributes.get_ints("kernel_shape")))
    ceil = bool(attributes.get_int("ceil_mode", 0))
    x = emitter.tensor(node.inputs[0])
    count = len(window.kernel)
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return _pool_with_places(emitter, node, window, x, ceil)
    floating = (
        node.inputs[0] is not None
        and node.inputs[0].dtype is not None
        and node.inputs[0].dtype.is_floating_point()
    )
    own = (
        count <= 3
        and floating
        and window.even
        and node.op_type in _POOLS
        and all(2 * pad <= size for pad, size in zip(window.begin, window.kernel, strict=True))
    )
    if own and node.op_type == "MaxPool":
        function = _POOLS["MaxPool"][count - 1]
        return emitter.call(function, x, window.kernel, window.strides, window.begin, window.dilations, ceil)
    include = bool(attributes.get_int("count_include_pad", 0))
    if own and not ceil and set(window.dilations) == {1}:
        function = _POOLS["AveragePool"][count - 1]
        return emitter.call(function, x, window.kernel, window.strides, window.begin, ceil, include)
    return emitter.call(
        pooled_windows, x, node.op_type, window.kernel, window.strides, window.dilations, window.begin,
        window.end, ceil, include, float(attributes.get_int("p", 2)) if node.op_type == "LpPool" else 0.0,
    )  # fmt: skip


def flat_places(places: torch.Tensor, x: torch.Tensor, columns_first: bool) -> torch.Tensor:
    """Places within a channel as places within the whole input, as ONNX counts them."""
    size = 1
    for each in x.shape[2:]:
        size = size * each
    if columns_first:
        transposed, stride, rest = torch.zeros_like(places), 1, places
        strides = []
        for each in x.shape[2:]:
            strides.append(stride)
            stride = stride * each
        for axis in range(x.dim() - 1, 1, -1):
            transposed = transposed + torch.remainder(rest, x.shape[axis]) * strides[axis - 2]
            rest = torch.div(rest, x.shape[axis], rounding_mode="floor")
        places = transposed
    channels = torch.arange(x.shape[0] * x.shape[1], device=x.device) * size
    return places + channels.reshape([x.shape[0], x.shape[1]] + [1] * (x.dim() - 2))


def _pool_with_places(emitter: Emitter, node: ir.Node, window: Window, x: Any, ceil: bool) -> Any:
    count = len(window.kernel)
    if count > 3 or not window.even:
        raise refusal(node, "torch gives no places of maxima under uneven pads")
    functions: Any = (F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices)
    found = emitter.call(
        functions[count - 1], x, window.kernel, window.strides, window.begin, window.dilations, ceil
    )
    places = emitter.call(operator.getitem, found, 1)
    columns_first = bool(node.attributes.get_int("storage_order", 0))
    return [emitter.call(operator.getitem, found, 0), emitter.call(flat_places, places, x, columns_first)]


def _global(kind: str) -> Form:
    def form(emitter: Emitter, node: ir.Node) -> Any:
        axes = list(range(2, rank(node.inputs[0], node)))
        x = emitter.tensor(node.inputs[0])
        if kind == "mean":
            return emitter.call(torch.mean, x, axes, True)
        if kind == "max":
            return emitter.call(torch.amax, x, axes, True)
        p = float(node.attributes.get_int("p", 2))
        return emitter.call(torch.linalg.vector_norm, x, p, axes, True)

    return form


def max_unpool(x: torch.Tensor, places: torch.Tensor, shape: list[Any], inner: list[Any]) -> torch.Tensor:
    """Puts maxima back to where they came from, zeros elsewhere; places count through the whole output."""
    size, outer = 1, 1
    for each in inner:
        size = size * each
    for each in shape:
        outer = outer * each
    flat = torch.zeros(x.shape[0] * x.shape[1] * size, dtype=x.dtype, device=x.device)
    made = torch.scatter(flat, 0, places.reshape(-1), x.reshape(-1)).reshape([*x.shape[:2], *inner])
    spread: list[Any] = []
    for have, wanted in zip(inner[::-1], shape[::-1], strict=False):
        spread += [0, wanted - have]
    return F.pad(made, spread)


def _max_unpool(emitter: Emitter, node: ir.Node) -> Any:
    window = Window(node, list(node.attributes.get_ints("kernel_shape")))
    sizes = static_sizes(node.inputs[0])
    if sizes is None:
        raise refusal(node, "it needs static sizes")
    inner = [
        (size - 1) * stride - first - last + kernel
        for size, stride, first, last, kernel in zip(
            sizes[2:], window.strides, window.begin, window.end, window.kernel, strict=True
        )
    ]
    shape = emitter.known_ints(node, 2, "output sizes") or inner
    x, places = (emitter.tensor(each) for each in node.inputs[:2])
    return emitter.call(max_unpool, x, places, shape[-len(inner) :], inner)


FORMS: dict[str, Form] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "GlobalAveragePool": _global("mean"),
    "GlobalMaxPool": _global("max"),
    "GlobalLpPool": _global("p"),
    "MaxUnpool": _max_unpool,
}
