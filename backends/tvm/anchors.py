"""Convolutions, products and pooling: from ONNX attributes to shapes with nothing left to resolve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .op import Op


@dataclass(frozen=True)
class Window:
    """A sliding window over spatial axes, `pads` as (before..., after...)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    def before(self, axis: int) -> int:
        """Padding in front along a spatial axis."""
        return self.pads[axis]

    def widened(self) -> Window:
        """The same window with a leading axis of size one, for kernels over two axes."""
        rank = self.rank
        pads = (0, *self.pads[:rank], 0, *self.pads[rank:])
        return Window((1, *self.kernel), (1, *self.strides), (1, *self.dilations), pads)


def window_of(op: Op, kernel: Sequence[int]) -> Window:
    """The window of a convolution or pooling operator, `auto_pad` resolved."""
    rank = len(kernel)
    strides = tuple(op.attr("strides") or (1,) * rank)
    dilations = tuple(op.attr("dilations") or (1,) * rank)
    pads = tuple(op.attr("pads") or (0,) * (2 * rank))
    mode = op.attr("auto_pad", "NOTSET")
    if mode == "VALID":
        pads = (0,) * (2 * rank)
    elif mode.startswith("SAME"):
        pads = _same(mode, op.input(0).shape[2:], kernel, strides, dilations)
    return Window(tuple(kernel), strides, dilations, pads)


def _same(
    mode: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[int, ...]:
    before, after = [], []
    for size, taps, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        wanted = -(-size // stride)
        total = max(0, (wanted - 1) * stride + (taps - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(large if mode == "SAME_LOWER" else small)
        after.append(small if mode == "SAME_LOWER" else large)
    return (*before, *after)


def conv_window(op: Op) -> Window:
    """The window of a Conv."""
    return window_of(op, op.attr("kernel_shape") or op.input(1).shape[2:])


def pool_window(op: Op) -> Window:
    """The window of a MaxPool or AveragePool."""
    return window_of(op, op.attr("kernel_shape"))


def transpose_window(op: Op) -> Window:
    """The window of a ConvTranspose; padding follows from the output's shape where ONNX says so."""
    kernel = op.attr("kernel_shape") or op.input(1).shape[2:]
    rank = len(kernel)
    window = window_of(_without_auto_pad(op), kernel)
    mode = op.attr("auto_pad", "NOTSET")
    if op.attr("output_shape") is None and not mode.startswith("SAME"):
        return window
    extra = op.attr("output_padding") or (0,) * rank
    before, after = [], []
    for axis in range(rank):
        size, out = op.input(0).shape[2 + axis], op.outputs[0].shape[2 + axis]
        reach = (
            (size - 1) * window.strides[axis] + extra[axis] + (kernel[axis] - 1) * window.dilations[axis] + 1
        )
        total = reach - out
        first = total // 2 if mode == "SAME_UPPER" else total - total // 2
        before.append(first)
        after.append(total - first)
    return Window(window.kernel, window.strides, window.dilations, (*before, *after))


def _without_auto_pad(op: Op) -> Op:
    from dataclasses import replace

    return replace(
        op, attributes={name: value for name, value in op.attributes.items() if name != "auto_pad"}
    )


def gemm_is_plain(op: Op) -> bool:
    """Whether a Gemm is a product and an addition, without transposed activations."""
    return not op.attr("transA", 0)
