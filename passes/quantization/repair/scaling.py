"""Constants of which every channel is multiplied or divided by a factor, and how layers take one up.

Where a factor is free to choose, and what it touches, is found in `sites.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ....ir.constants import constant_array, constant_tensor
from ....ir.static import rank_of, static_shape
from ...rewriter import Rewriter
from .places import Place

Operand = tuple[ir.Node, int]
"""A constant operand: node and input index."""


@dataclass(frozen=True)
class Edit:
    """A constant operand of which channel c is multiplied (or divided) by factor c.

    Attributes:
        operand: Which one.
        axes: Axes of the constant, as it is after broadcasting to `rank` axes, that hold the channels.
        rank: Axes of the constant after broadcasting; 0 leaves it as it is.
        sizes: Sizes of `axes`.
        divide: Whether it is divided.
        groups: Of a grouped convolution whose input channels are scaled; else 1.
    """

    operand: Operand
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    rank: int
    divide: bool
    groups: int = 1

    def scaled(self, array: np.ndarray, factors: np.ndarray) -> np.ndarray:
        """The constant with factors `[channels]` applied, in its own type."""
        if self.groups > 1:
            # [outputs, channels of a group, ...]: the group of an output says which channels it reads.
            per_group = factors.reshape(self.groups, -1).repeat(len(array) // self.groups, axis=0)
            spread = per_group.reshape(*per_group.shape, *[1] * (array.ndim - 2))
        else:
            array = array.reshape([1] * (self.rank - array.ndim) + list(array.shape))
            spread = Place(self.axes, self.sizes).spread(factors, array.ndim)
        wide = array.astype(np.float64)
        return (wide / spread if self.divide else wide * spread).astype(array.dtype)

    def magnitudes(self, array: np.ndarray) -> np.ndarray:
        """The largest magnitude in each channel, float64 `[channels]`."""
        wide = np.abs(array.astype(np.float64))
        if self.groups > 1:
            shape = (self.groups, len(array) // self.groups, array.shape[1], -1)
            return wide.reshape(shape).max(axis=(1, 3)).reshape(-1)
        others = tuple(axis for axis in range(wide.ndim) if axis not in self.axes)
        return wide.max(axis=others)


class Constants:
    """Constant operands as they will be; written to the graph once at the end."""

    def __init__(self) -> None:
        self._arrays: dict[Operand, np.ndarray] = {}

    def get(self, operand: Operand) -> np.ndarray:
        """The constant as it is now."""
        if operand in self._arrays:
            return self._arrays[operand]
        array = constant_array(operand[0].inputs[operand[1]])
        assert array is not None
        return array

    def scale(self, edits: Iterable[Edit], factors: np.ndarray) -> None:
        """Apply factors `[channels]` to several constants, as to all that a site touches."""
        for edit in edits:
            self.multiply(edit, factors)

    def set(self, operand: Operand, array: np.ndarray) -> None:
        """Let a constant be something else."""
        self._arrays[operand] = array

    def multiply(self, edit: Edit, factors: np.ndarray) -> None:
        """Apply factors `[channels]` to one constant."""
        self._arrays[edit.operand] = edit.scaled(self.get(edit.operand), factors)

    def write(self, rewriter: Rewriter) -> int:
        """Let the operands read what they have become; returns how many changed."""
        for (node, index), array in self._arrays.items():
            old = node.inputs[index]
            assert old is not None
            rewriter.set_input(node, index, rewriter.initializer(str(old.name), array))
        rewriter.drop_orphans()
        return len(self._arrays)


def weight_edit(node: ir.Node, index: int, place: Place, *, divide: bool = False) -> Edit | str:
    """How input channels at `place` of operand `index` are scaled in the weights of a reader."""
    if index != 0:
        return f"it is an operand of {node.op_type} that is no plain input"
    weight = node.inputs[1]
    shape = static_shape(weight)
    if constant_tensor(weight) is None or shape is None:
        return f"the weights of {node.op_type} '{node.name}' are not constant"
    rank = rank_of(node.inputs[0])
    if node.op_type in ("Conv", "ConvTranspose"):
        if not place.at(1):
            return f"the channels are not those of {node.op_type} '{node.name}'"
        groups = node.attributes.get_int("group", 1)
        if node.op_type == "Conv" and groups > 1:
            return Edit((node, 1), (1,), place.sizes, 0, divide, groups)
        axis = 1 if node.op_type == "Conv" else 0
        return Edit((node, 1), (axis,), place.sizes, 0, divide)
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0) or not place.at(1):
            return f"the channels are not what Gemm '{node.name}' sums over"
        axis = 1 if node.attributes.get_int("transB", 0) else 0
        return Edit((node, 1), (axis,), place.sizes, 0, divide)
    if rank is None or not place.at(rank - 1) or len(shape) < 2:
        return f"the channels are not what MatMul '{node.name}' sums over"
    return Edit((node, 1), (len(shape) - 2,), place.sizes, 0, divide)


def is_reader(node: ir.Node) -> bool:
    """Whether constant weights of a node could take up a factor."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return True
    return node.op_type == "MatMul" and constant_tensor(node.inputs[1]) is not None
