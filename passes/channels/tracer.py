"""The state of one dependency analysis: labels of all axes, and what each operator has to say about removal.

An operator's handler reads the labels of its inputs, ties what must go together, pins what must stay, and
sets the labels of its outputs. It also states, for the removal itself:

- contractions: an operand axis that is summed over. Removing an index there removes its term from the sum, so
  the masked model zeroes that slice (or fills it with whatever is neutral for the operator);
- statistics: axes over which a normalization takes its statistics. They change when indices go, so such axes
  only carry labels on request;
- producers: the weight axis that makes new channels (filters of a convolution, neurons of a linear layer);
- resizers: integer operands and attributes that hold a size or an index, and what they become.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from ...ir.constants import constant_tensor
from .labels import Axis, Labels

OUTER, INNER = -2, -1
"""Preferences for splitting an axis: by position instead of by size."""

Dim = int | str | None
"""A static size, a symbol, or None where nothing is known."""


class Keep(Protocol):
    """Answers, during removal, which indices of an axis stay."""

    def mask(self, axis: Axis, size: int) -> np.ndarray:
        """One bool per index: whether it stays."""

    def count(self, axis: Axis, size: int) -> int:
        """Number of indices that stay."""


@dataclass(frozen=True)
class Shift:
    """What is to be added to a computed integer operand."""

    amount: np.ndarray


@dataclass(frozen=True)
class Scale:
    """A factor for the first output of a node."""

    factor: float


@dataclass(frozen=True)
class Refill:
    """Zeros where indices of an axis are gone from the first input; the first output loses these again."""

    axis: int
    stays: np.ndarray


@dataclass(frozen=True)
class Edit:
    """An operand (by position) or an attribute (by name) of a node that gets a new value.

    The value of an operand is an array, or a `Shift` of what is computed there. A `Scale` belongs to the
    first output, whatever the position, and a `Refill` to the first input and output.
    """

    node: ir.Node
    where: int | str
    value: Any


@dataclass(frozen=True)
class Contraction:
    """An operand axis that is summed over by a node.

    Attributes:
        node: The node.
        operand: Position of the operand.
        axis: The axis.
        fill: What removed entries become in the masked model: the neutral element of the operator.
    """

    node: ir.Node
    operand: int
    axis: int
    fill: float = 0.0


@dataclass(frozen=True)
class Statistic:
    """An axis of the first input over which a node takes statistics."""

    node: ir.Node
    axis: int


@dataclass(frozen=True)
class Producer:
    """A weight axis along which a node makes new channels."""

    node: ir.Node
    value: ir.Value
    axis: int


Resizer = Callable[[Keep], Iterable[Edit]]
Handler = Callable[[ir.Node, "Tracer"], "str | None"]

HANDLERS: dict[str, Handler] = {}
"""By operator type of the default domain. A handler returns a reason if it does not understand a node; it
must do so before it ties anything."""


def traces(*op_types: str) -> Callable[[Handler], Handler]:
    """Register a handler for operators of the default domain."""

    def add(handler: Handler) -> Handler:
        for op_type in op_types:
            HANDLERS[op_type] = handler
        return handler

    return add


class Tracer:
    """Labels of all axes of all values.

    Attributes:
        labels: The label store.
        unit: The pin of axes of size one: they cannot shrink.
        contractions: All axes that are summed over.
        statistics: All labelled axes over which statistics are taken.
        producers: All axes that make channels.
        resizers: What recomputes the sizes and indices a node holds.
        prefer: For a node that splits an axis, which part of it carries the labels (see `layout`).
        splits: Nodes that had such a choice, with the number of indices that the chosen part has.
        stopped: Nodes that are barriers, and why.
        allow_statistical: Whether axes that normalizations look along may carry labels.
    """

    def __init__(
        self,
        walk: Callable[[ir.Node, Tracer], None],
        prefer: dict[ir.Node, int] | None = None,
        *,
        allow_statistical: bool = False,
    ) -> None:
        self._walk = walk
        self.allow_statistical = allow_statistical
        self.labels = Labels()
        self.unit = self.labels.new_pin(None, "an axis of size one cannot shrink")
        self.axes: dict[ir.Value, list[Axis | None]] = {}
        self.contractions: list[Contraction] = []
        self.statistics: list[Statistic] = []
        self.producers: list[Producer] = []
        self.resizers: list[Resizer] = []
        self.prefer = prefer or {}
        self.splits: dict[ir.Node, int] = {}
        self.stopped: dict[ir.Node, str] = {}
        self._made: set[int] = set()
        self._fixed: set[ir.Value] = set()
        self._dims: dict[ir.Value, tuple[Dim, ...] | None] = {}

    def walk(self, node: ir.Node) -> None:
        """Trace a node of a body."""
        self._walk(node, self)

    def dims(self, value: ir.Value) -> tuple[Dim, ...]:
        """Shape of a value whose rank is known."""
        dims = self.known_dims(value)
        assert dims is not None
        return dims

    def known_dims(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """Shape of a value, or None where the rank is unknown."""
        if value not in self._dims:
            shape = value.shape
            tensor = constant_tensor(value) if shape is None else None
            if tensor is not None:
                self._dims[value] = tuple(int(dim) for dim in tensor.shape)
            else:
                self._dims[value] = None if shape is None else tuple(_dim(dim) for dim in shape)
        return self._dims[value]

    def note_fixed(self, node: ir.Node) -> None:
        """Remember the outputs of a node that computes from constants only (a weight that is transposed)."""
        if node.inputs and all(value is None or self.is_weight(value) for value in node.inputs):
            self._fixed.update(node.outputs)

    def is_weight(self, value: ir.Value) -> bool:
        """Whether a value is stored, or computed from stored ones only."""
        return value in self._fixed or constant_tensor(value) is not None

    def axis(self, value: ir.Value, index: int) -> Axis:
        """Labels of one axis; a constant gets its labels when it is first asked for them."""
        axes = self._axes_of(value)
        index %= len(axes)
        found = axes[index]
        if found is None:
            size = self.dims(value)[index]
            assert isinstance(size, int)
            found = self.unit if size == 1 else self.labels.fresh(size)
            axes[index] = found
        return found

    def all_axes(self, value: ir.Value) -> list[Axis]:
        """Labels of all axes."""
        return [self.axis(value, index) for index in range(len(self.dims(value)))]

    def label(self, value: ir.Value) -> None:
        """Give every static axis of a graph input labels of its own: it may get smaller."""
        pin = self.labels.new_pin(None, f"an open size of graph input '{value.name}' stays")
        self.axes[value] = [
            pin if not isinstance(dim, int) else self.unit if dim == 1 else self.labels.fresh(dim)
            for dim in self.known_dims(value) or ()
        ]

    def is_labelled(self, value: ir.Value, index: int) -> bool:
        """Whether an axis holds labels rather than one pin (asking gives a constant no labels)."""
        return isinstance(self._axes_of(value)[index], np.ndarray)

    def periodic(self, value: ir.Value) -> list[int]:
        """The axes of open size that carry labels: those of one period (see `periods`)."""
        return [
            index
            for index, axis in enumerate(self.axes.get(value, ()))
            if isinstance(axis, np.ndarray) and not isinstance(self.dims(value)[index], int)
        ]

    def set(self, value: ir.Value, axes: Iterable[Axis]) -> None:
        """Set the labels of an output."""
        stored: list[Axis | None] = []
        for dim, axis in zip(self.dims(value), axes, strict=True):
            if dim == 1:
                # What is left of a longer axis (one part of a Split) must not vanish.
                self.labels.tie(self.unit, axis)
            stored.append(self.unit if dim == 1 else self._fitting(axis, dim))
        self.axes[value] = stored

    def tie(self, axis: Axis, value: ir.Value, index: int) -> None:
        """Tie one axis of `value` to `axis`; both have the same size."""
        axes = self._axes_of(value)
        index %= len(axes)
        mine = axes[index]
        if mine is None:
            # A constant that nobody labelled yet adopts the labels.
            axes[index] = self._fitting(axis, self.dims(value)[index])
        else:
            self.labels.tie(axis, mine)

    def _fitting(self, axis: Axis, dim: Dim) -> Axis:
        """Labels of one period spread over an axis of which the size is known."""
        if isinstance(axis, int) or not isinstance(dim, int) or len(axis) in (1, dim):
            return axis
        if dim % len(axis) == 0:
            return np.tile(axis, dim // len(axis))
        pin = self.labels.new_pin(None, "its size is not a multiple of a period")
        self.labels.tie(pin, axis)
        return pin

    def keep(self, value: ir.Value, index: int, node: ir.Node | None, reason: str) -> int:
        """Pin one axis of a value; returns the pin."""
        pin = self.labels.new_pin(node, reason)
        self.tie(pin, value, index)
        return pin

    def keep_value(self, value: ir.Value, pin: int) -> None:
        """Pin all axes of a value."""
        for index in range(len(self.known_dims(value) or ())):
            self.tie(pin, value, index)

    def stop(self, node: ir.Node, reason: str) -> None:
        """Make a node a barrier: every axis that reaches it or leaves it stays."""
        self.stopped[node] = reason
        pin = self.labels.new_pin(node, reason)
        for value in node.inputs:
            if value is not None:
                self.keep_value(value, pin)
        for value in node.outputs:
            self.axes[value] = [pin] * len(self.known_dims(value) or ())

    def contract(self, node: ir.Node, operand: int, axis: int, fill: float = 0.0) -> None:
        """State that a node sums over an operand axis, or combines along it where `fill` is neutral."""
        value = node.inputs[operand]
        assert value is not None
        index = axis % len(self.dims(value))
        if index in self.periodic(value):
            self.keep(value, index, node, f"{node.op_type} sums over an axis of open size")
        elif not isinstance(self._axes_of(value)[index], int):
            self.contractions.append(Contraction(node, operand, index, fill))

    def statistic(self, node: ir.Node, axis: int, reason: str) -> bool:
        """State that a node takes statistics over an axis of its first input; pins it unless that is allowed.

        Returns:
            Whether the axis carries labels.
        """
        value = node.inputs[0]
        assert value is not None
        if not self.is_labelled(value, axis):
            return False
        if axis % len(self.dims(value)) in self.periodic(value):
            self.keep(value, axis, node, f"{node.op_type} looks along an axis of open size")
            return False
        if not self.allow_statistical:
            self.keep(value, axis, node, f"{reason} (allow_statistical=true lets it shrink)")
            return False
        self.statistics.append(Statistic(node, axis % len(self.dims(value))))
        return True

    def look_along(self, node: ir.Node, axis: int) -> Axis:
        """State that a node mixes neighbours on an axis of its first input that its first output has, too.

        It goes on seeing all positions: those that are removed hold zeros, and their results are dropped.

        Returns:
            The labels of the axis, for the output.
        """
        value = node.inputs[0]
        assert value is not None
        labels = self.axis(value, axis)
        if isinstance(labels, np.ndarray):
            self.contract(node, 0, axis)
            held = labels
            self.on_removal(lambda keep: _refilled(node, keep, axis, held))
        return labels

    def produce(self, node: ir.Node, value: ir.Value, axis: int) -> Axis:
        """State that a weight axis makes new channels; returns its labels."""
        self.producers.append(Producer(node, value, axis % len(self.dims(value))))
        labels = self.axis(value, axis)
        if isinstance(labels, np.ndarray):
            self._made.update(labels[labels >= 0].tolist())
        return labels

    def is_made(self, labels: np.ndarray) -> bool:
        """Whether a layer makes the channels that carry these labels, as far as is known by now."""
        return any(label in self._made for label in labels[labels >= 0][:1].tolist())

    def on_removal(self, resizer: Resizer) -> None:
        """Register what recomputes the sizes and indices that a node holds."""
        self.resizers.append(resizer)

    def _axes_of(self, value: ir.Value) -> list[Axis | None]:
        if value not in self.axes:
            rank = len(self.known_dims(value) or ())
            if constant_tensor(value) is not None:
                self.axes[value] = [None] * rank
            else:
                reason = f"graph input '{value.name}' keeps its shape"
                self.axes[value] = [self.labels.new_pin(None, reason)] * rank
        return self.axes[value]


def _refilled(node: ir.Node, keep: Keep, axis: int, labels: np.ndarray) -> Iterator[Edit]:
    stays = keep.mask(labels, len(labels))
    if not stays.all():
        yield Edit(node, 0, Refill(axis, stays))


def _dim(dim: int | ir.SymbolicDim) -> Dim:
    return dim if isinstance(dim, int) else dim.value
