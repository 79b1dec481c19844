"""What an anchor kernel takes and gives: specs, the epilogue fused into it, and the finished function.

A spec describes one anchor by shapes alone, so that structurally equal layers share one function. All spatial
quantities are resolved by the caller (no `auto_pad`, no symbolic dimensions).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import numpy as np

Index = tuple[Any, ...]
"""One TIR index expression per dimension."""


def nhwc(index: Index) -> Index:
    """Storage index of a logical (n, c, h, w)."""
    n, c, h, w = index
    return (n, h, w, c)


@dataclass(frozen=True)
class ExtraInput:
    """One more tensor read by an epilogue (bias, residual, scale ...), with the shape it is stored in."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = ""
    """Free text for whoever builds the epilogue (for example "NHWC"); kernels do not read it."""


@dataclass(frozen=True)
class Epilogue:
    """Element-wise tail applied when a kernel stores, while the tile is in registers or first-level cache.

    `apply(value, index, extras)` gets the accumulated value (float32), the output index in logical order,
    (n, c, h, w) for convolution and pooling and (..., m, n) for matmul, and one indexable TIR buffer per
    extra input; it returns the value to store. The channel or column is a vector loop:
    `apply` must not branch on it.

    `out_index` maps the logical index to the index in the destination, of shape `out_shape`: a slice of a
    concatenation or a transposed store costs nothing here. Without them a kernel stores NHWC or (..., m, n).
    """

    extra: tuple[ExtraInput, ...] = ()
    key: str = ""
    """Structural key: equal keys mean equal functions of equal extra inputs."""
    apply: Callable[[Any, Index, list[Any]], Any] | None = field(default=None, compare=False)
    out_dtype: str = "float32"
    out_shape: tuple[int, ...] | None = None
    out_index: Callable[[Index], Index] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Kernel:
    """One scheduled function and how to store the weights it reads."""

    func: Any
    """`tirx.PrimFunc` over buffers: data inputs, packed weights, extra inputs, output (last)."""
    pack: tuple[Callable[[np.ndarray], np.ndarray], ...]
    """Per constant weight: array in ONNX layout -> array in the layout the function reads."""
    flops: int
    note: str
    """The tile that was chosen, for reports."""
    sources: tuple[str, ...] = ()
    """Per constant weight: which operand it comes from, where they are not one for each in order."""


@dataclass(frozen=True)
class Conv2dSpec:
    """A 2-D convolution, data stored (N, H, W, C), weights given as ONNX (O, C / groups, KH, KW)."""

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Top, left, bottom, right, as ONNX orders them; never negative."""
    groups: int = 1

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return _out_size(
            self.height, self.kernel[0], self.stride[0], self.dilation[0], self.pads[0], self.pads[2]
        )

    @property
    def out_width(self) -> int:
        """Columns of the output."""
        return _out_size(
            self.width, self.kernel[1], self.stride[1], self.dilation[1], self.pads[1], self.pads[3]
        )

    @property
    def data_shape(self) -> tuple[int, int, int, int]:
        """Shape of the stored input."""
        return (self.batch, self.height, self.width, self.in_channels)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the stored output."""
        return (self.batch, self.out_height, self.out_width, self.out_channels)

    @property
    def flops(self) -> int:
        """Additions and multiplications."""
        taps = prod(self.kernel) * self.in_channels // self.groups
        return 2 * prod(self.out_shape) * taps


@dataclass(frozen=True)
class ConvTransposeSpec:
    """A 2-D transposed convolution, data (N, H, W, C), weights given as ONNX (C, O / groups, KH, KW).

    `pads` are resolved: output_padding or output_shape only enter through `out_height` and `out_width`.
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    groups: int = 1

    @property
    def data_shape(self) -> tuple[int, int, int, int]:
        """Shape of the stored input."""
        return (self.batch, self.height, self.width, self.in_channels)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the stored output."""
        return (self.batch, self.out_height, self.out_width, self.out_channels)

    @property
    def flops(self) -> int:
        """Additions and multiplications."""
        return 2 * prod(self.data_shape) * prod(self.kernel) * self.out_channels // self.groups


@dataclass(frozen=True)
class Operand:
    """How a matrix operand lies in memory: buffer `shape`, seen as `view`, transposed by `perm`.

    `view` is a reshape of the stored shape and `perm` a permutation of the view's axes (default: none), so
    that `split heads -> transpose` in attention needs no copy.
    """

    shape: tuple[int, ...]
    perm: tuple[int, ...] | None = None
    view: tuple[int, ...] | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape before the permutation."""
        return self.view if self.view is not None else self.shape

    @property
    def logical(self) -> tuple[int, ...]:
        """Shape that takes part in the product."""
        return self.stored if self.perm is None else tuple(self.stored[axis] for axis in self.perm)

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements between neighbours along each logical axis."""
        steps = [prod(self.stored[i + 1 :]) for i in range(len(self.stored))]
        return tuple(steps) if self.perm is None else tuple(steps[axis] for axis in self.perm)


@dataclass(frozen=True)
class MatmulSpec:
    """A product `a @ b` by ONNX MatMul's rules (ranks >= 2, leading axes broadcast).

    With `constant_b` the right operand is a 2-D weight, packed at compile time; Gemm is this with
    `b = Operand((N, K), perm=(1, 0))` for transB=1. `alpha`, `beta` and C belong to the epilogue.
    """

    a: Operand
    b: Operand
    constant_b: bool = False

    @property
    def k(self) -> int:
        """Length of the reduction."""
        return self.a.logical[-1]

    @property
    def batch(self) -> tuple[int, ...]:
        """Leading axes of the product."""
        return tuple(np.broadcast_shapes(self.a.logical[:-2], self.b.logical[:-2]))

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the stored output."""
        return (*self.batch, self.a.logical[-2], self.b.logical[-1])

    @property
    def flops(self) -> int:
        """Additions and multiplications."""
        return 2 * prod(self.out_shape) * self.k


@dataclass(frozen=True)
class PoolSpec:
    """2-D pooling, data (N, H, W, C); `ceil_mode` is resolved into `out_height` and `out_width`."""

    mode: Literal["max", "average"]
    batch: int
    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    count_include_pad: bool = False
    dtype: str = "float32"
    """Element type of the data; maxima keep it, averages are float32."""
    zero_point: int = 0
    """What is taken off integers before they are averaged."""

    @property
    def data_shape(self) -> tuple[int, int, int, int]:
        """Shape of the stored input."""
        return (self.batch, self.height, self.width, self.channels)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """Shape of the stored output."""
        return (self.batch, self.out_height, self.out_width, self.channels)

    @property
    def flops(self) -> int:
        """Additions and multiplications."""
        return prod(self.out_shape) * prod(self.kernel)


def _out_size(size: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
