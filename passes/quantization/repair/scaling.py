"""Moves a positive factor per channel from one operator to those behind it, without changing any output.

    root(x) / s  ->  operators that commute with positive factors  ->  (W * s) y

What makes the channels (a convolution, a product, the scale of a normalization: the root) is divided by s,
the constant weights of everything that reads them (the readers) are multiplied by s. Between the two may
stand what is positively homogeneous in its input: ReLU, LeakyReLU, PReLU, pooling, means, zero padding,
products with something else (gates, attention weights), the addition of a constant, which is divided too, and
every reshape and transpose that keeps the channels apart from the rest.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ....ir.bodies import bodies_of
from ....ir.constants import constant_array, constant_tensor
from ....ir.static import rank_of, static_shape
from ...rewriter import Rewriter
from .passing import pass_through
from .places import Place

_DEFAULT = ("", "ai.onnx")
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


@dataclass
class Site:
    """One place where a factor per channel is free to choose.

    Attributes:
        root: What makes the channels.
        value: Its result.
        channels: How many.
        divided: Constants of the root, and those added on the way; the first is the root's weight or scale.
        multiplied: Weights of the readers.
        entries: What each reader reads, and where the channels lie there.
    """

    root: ir.Node
    value: ir.Value
    channels: int
    divided: list[Edit]
    multiplied: list[Edit] = field(default_factory=list)
    entries: list[tuple[ir.Value, Place]] = field(default_factory=list)

    @property
    def readers(self) -> list[ir.Node]:
        """The operators whose weights are multiplied."""
        return [edit.operand[0] for edit in self.multiplied]


def find_sites(
    graph: ir.Graph,
    roots: Callable[[ir.Node], bool],
    leave: Callable[[ir.Node, str], None],
) -> list[Site]:
    """All sites whose root the caller wants.

    Args:
        graph: The main graph; not changed.
        roots: Which nodes may be one.
        leave: Told of roots whose factor cannot be moved, and why.
    """
    order = {node: index for index, node in enumerate(graph)}
    found = []
    for node in graph:
        if not roots(node):
            continue
        site = root_of(node)
        if isinstance(site, str):
            leave(node, site)
            continue
        if site is None:
            continue
        problem = _follow(site, order)
        if problem is not None:
            leave(node, problem)
        elif site.multiplied:
            found.append(site)
    return found


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

    def scale(self, site: Site, factors: np.ndarray) -> None:
        """Move factors `[channels]` from the root of a site to its readers."""
        for edit in (*site.divided, *site.multiplied):
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


def root_of(node: ir.Node) -> Site | str | None:
    """A site with nothing but its root, why the node cannot be one, or None where it is no candidate."""
    if node.domain not in _DEFAULT:
        return None
    value = node.outputs[0]
    rank = rank_of(value)
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = node.attributes.get_int("group", 1)
        if node.op_type == "ConvTranspose" and groups > 1:
            return "it is grouped and transposed"
        return _weighted_root(node, value, 1, 0 if node.op_type == "Conv" else 1, 2)
    if node.op_type == "Gemm":
        return _weighted_root(node, value, 1, 0 if node.attributes.get_int("transB", 0) else 1, 2)
    if node.op_type == "MatMul":
        weight = static_shape(node.inputs[1])
        if rank is None or weight is None or len(weight) != 2 or constant_tensor(node.inputs[1]) is None:
            return None if constant_tensor(node.inputs[1]) is None else "its weight is not a matrix"
        return _weighted_root(node, value, rank - 1, 1, None)
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        if rank is None or node.attributes.get_int("axis", -1) not in (-1, rank - 1):
            return "it normalizes over several axes"
        return _weighted_root(node, value, rank - 1, 0, 2)
    if node.op_type in ("BatchNormalization", "InstanceNormalization", "GroupNormalization"):
        if node.attributes.get_int("training_mode", 0):
            return "it is in training mode"
        return _weighted_root(node, value, 1, 0, 2)
    if node.op_type == "Mul":
        return _product_root(node, value)
    return None


def _weighted_root(
    node: ir.Node, value: ir.Value, axis: int, weight_axis: int, bias: int | None
) -> Site | str | None:
    shape = static_shape(node.inputs[1])
    if constant_tensor(node.inputs[1]) is None or shape is None or not _is_float(node.inputs[1]):
        return "its weight is not a constant" if node.op_type != "MatMul" else None
    if value.shape is None or len(shape) <= weight_axis:
        return "its shape is not known"
    size = shape[weight_axis]
    if value.shape[axis] != size:
        return "its weight has not one entry per channel"
    edits = [Edit((node, 1), (weight_axis,), (size,), 0, True)]
    second = node.inputs[bias] if bias is not None and len(node.inputs) > bias else None
    if bias is not None and second is not None:
        dims = static_shape(second)
        if constant_tensor(second) is None or dims is None:
            return "its bias is not a constant"
        rank = max(len(dims), 1)
        if dims and dims[-1] not in (1, size):
            return "its bias has not one entry per channel"
        edits.append(Edit((node, bias), (rank - 1,), (size,), rank, True))
    return Site(node, value, size, edits)


def _product_root(node: ir.Node, value: ir.Value) -> Site | str | None:
    """A product with a constant per channel: the scale of a normalization written in single steps."""
    for index in (0, 1):
        operand = node.inputs[index]
        dims = static_shape(operand)
        if operand is None or constant_tensor(operand) is None or dims is None or not _is_float(operand):
            continue
        wide = [axis for axis, size in enumerate(dims) if size != 1]
        rank = rank_of(value)
        if len(wide) != 1 or rank is None or len(dims) > rank:
            return None
        size = dims[wide[0]]
        axis = wide[0] + rank - len(dims)
        if value.shape is None or value.shape[axis] != size:
            return None
        return _ProductSite(
            node, value, size, [Edit((node, index), (wide[0],), (size,), len(dims), True)], axis=axis
        )
    return None


@dataclass
class _ProductSite(Site):
    """A site whose channels lie along an axis that the operator does not fix."""

    axis: int = 1


def channel_axis(site: Site) -> int:
    """The axis of the root's result that holds the channels."""
    if isinstance(site, _ProductSite):
        return site.axis
    rank = rank_of(site.value)
    assert rank is not None
    last = site.root.op_type in ("MatMul", "LayerNormalization", "RMSNormalization")
    return rank - 1 if last else 1


def _follow(site: Site, order: Mapping[ir.Node, int]) -> str | None:
    """Collect the readers of a site; returns why its factor cannot be moved, or None."""
    scaled: dict[ir.Value, Place] = {site.value: Place((channel_axis(site),), (site.channels,))}
    if site.value.is_graph_output():
        return "its result is an output of the model"
    if any(value.uses() or value.is_graph_output() for value in site.root.outputs[1:]):
        return "its other results are used"
    pending: list[tuple[int, ir.Node]] = []
    seen: set[ir.Node] = set()

    def visit(value: ir.Value) -> str | None:
        for user, _ in value.uses():
            if user not in order:
                return "it is read inside a body"
            if user not in seen:
                seen.add(user)
                heapq.heappush(pending, (order[user], user))
        return None

    problem = visit(site.value)
    # Popped in graph order, so that all scaled operands of a node are known when its turn comes.
    while problem is None and pending:
        _, node = heapq.heappop(pending)
        if bodies_of(node) or node.domain not in _DEFAULT:
            return f"{node.op_type} '{node.name}' reads it"
        operands = [i for i, value in enumerate(node.inputs) if value is not None and value in scaled]
        if is_reader(node):
            for index in operands:
                value = node.inputs[index]
                assert value is not None
                edit = weight_edit(node, index, scaled[value])
                if isinstance(edit, str):
                    return edit
                site.multiplied.append(edit)
                site.entries.append((value, scaled[value]))
            continue
        passed = pass_through(node, operands, scaled)
        if isinstance(passed, str):
            return passed
        places, constant = passed
        if constant is not None:
            index, place, rank = constant
            site.divided.append(Edit((node, index), place.axes, place.sizes, rank, True))
        for value, place in places.items():
            scaled[value] = place
            if value.is_graph_output():
                return f"it reaches the output '{value.name}' of the model"
            problem = problem or visit(value)
    return problem


def is_reader(node: ir.Node) -> bool:
    """Whether constant weights of a node could take up a factor."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
        return True
    return node.op_type == "MatMul" and constant_tensor(node.inputs[1]) is not None


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in (
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.DOUBLE,
    )
