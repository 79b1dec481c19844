"""Dependency analysis: one walk over the main graph and its bodies that labels every axis of every value.

The graph's inputs and outputs keep their shapes unless they are named. Operators without a handler are
barriers: their axes, and those of values that bodies of such an operator capture, stay.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from ...ir.bodies import bodies_of
from ...ir.collector import without_collector

# They register handlers.
from . import attention as _attention  # noqa: F401
from . import (  # noqa: F401
    contractions,
    control,
    elementwise,
    indexing,
    layout,
    recurrent,
    reductions,
    reshapes,
    windows,
)
from .heads import Attention, attention_products, choices, next_splits
from .labels import Classes, Pin, spread
from .periods import keep_open_sizes
from .places import addresses, ordered_nodes
from .sizes import entries, labelled_sizes
from .tracer import HANDLERS, INNER, OUTER, Producer, Tracer


@dataclass(frozen=True)
class Dependencies:
    """What the walk found.

    Attributes:
        model: What was analysed.
        nodes: The nodes of the main graph in order, then those of its bodies (`places.ordered_nodes`).
        tracer: Labels of all axes, contractions, producers and resizers.
        classes: Classes of labels that go together.
    """

    model: ir.Model
    nodes: list[ir.Node]
    tracer: Tracer
    classes: Classes

    def classes_of(self, value: ir.Value, axis: int) -> np.ndarray:
        """Class of every index of an axis; -1 where the index must stay."""
        axes = self.tracer.axes.get(value)
        size = self.tracer.dims(value)[axis]
        labels = axes[axis] if axes is not None else None
        if not isinstance(labels, np.ndarray):
            return np.full(size if isinstance(size, int) else 0, -1, np.int64)
        known = self._known.get(id(labels))
        if known is None:
            known = self._known[id(labels)] = self.removable(labels)
            known.flags.writeable = False
        return known

    @cached_property
    def _known(self) -> dict[int, np.ndarray]:
        """Classes of label arrays, which many values share and which live as long as the analysis."""
        return {}

    def removable(self, labels: np.ndarray) -> np.ndarray:
        """Classes of labels; -1 where the class is pinned."""
        found = np.full(len(labels), -1, np.int64)
        free = labels >= 0
        classes = self.classes.of[labels[free]]
        found[free] = np.where(self.classes.pin[classes] < 0, classes, -1)
        return found

    @cached_property
    def names(self) -> dict[ir.Value, str]:
        """The name of every value that is made or stored (`places.addresses`)."""
        return {value: name for name, value in addresses(self.model).items()}

    @cached_property
    def statistical(self) -> np.ndarray:
        """Names, ascending, of the classes whose removal changes the statistics of a normalization."""
        touched = [np.zeros(0, np.int64)]
        for statistic in self.tracer.statistics:
            data = statistic.node.inputs[0]
            assert data is not None
            touched.append(self.classes_of(data, statistic.axis))
        names = np.unique(np.concatenate(touched))
        return names[names >= 0]

    def why_kept(self, value: ir.Value, axis: int) -> Pin | None:
        """The first pin that keeps an index of this axis, or None where all may be removed."""
        axes = self.tracer.axes.get(value)
        size = self.tracer.dims(value)[axis]
        labels = axes[axis] if axes is not None else None
        if labels is None:
            return None
        for label in spread(labels, size if isinstance(size, int) else 1):
            pin = -1 - label if label < 0 else self.classes.pin[self.classes.of[label]]
            if pin >= 0:
                return self.tracer.labels.pins[int(pin)]
        return None

    def joined_by(self, value: ir.Value, axis: int) -> ir.Node | None:
        """The node that joins what could go of an axis, all of one class; None where no tie is needed."""
        labels = self.tracer.axis(value, axis)
        if not isinstance(labels, np.ndarray):
            return None
        return self.tracer.labels.joined_by(labels[self.removable(labels) >= 0], self.classes.of)


@without_collector
def analyse(
    model: ir.Model,
    *,
    allow_statistical: bool = False,
    outputs: Collection[str] = (),
    inputs: Collection[str] = (),
    attention: Attention = "auto",
) -> Dependencies:
    """Label every axis of every value of the main graph; the model is not changed.

    Where an axis is split (heads and head dimensions, groups of a channel shuffle) only one part can carry
    the labels. The larger is tried first; parts whose classes all end up pinned are tried again with another
    one.

    Args:
        model: At the canonical opset, shapes inferred.
        allow_statistical: Let axes go that normalizations take statistics over. Splits that allow exact
            removal are preferred all the same.
        outputs: Names of graph outputs that may get smaller.
        inputs: Names of graph inputs that may get smaller, in what layers read as channels and in what goes
            with channels that are made elsewhere.
        attention: Let attention lose heads, or positions within them, wherever it can; by itself it loses
            what there is more of.
    """
    interface = _Interface(frozenset(inputs), frozenset(outputs))
    best = _best_walk(model, {}, interface, allow_statistical=False)
    if allow_statistical:
        best = _best_walk(model, best.tracer.prefer, interface, allow_statistical=True)
    return best if attention == "auto" else _best_for(attention, best, interface, allow_statistical)


def _best_for(
    wish: Attention, best: Dependencies, interface: _Interface, allow_statistical: bool
) -> Dependencies:
    """The walk that leaves attention the most heads, or positions within them, to choose from."""
    usual = best.tracer.prefer
    # A projection may be split into queries, keys and values first, and only then into heads.
    for around in (_neighbourhood(best, attention_products(best)), next_splits(best)):
        for preference in (0, 1, 2, OUTER, INNER):
            prefer = {**usual, **dict.fromkeys(around, preference)}
            found = _walk(best.model, prefer, interface, allow_statistical)
            if (choices(found, wish), freedom(found)) > (choices(best, wish), freedom(best)):
                best = found
    return best


@dataclass(frozen=True)
class _Interface:
    """Names of graph inputs and outputs that may get smaller."""

    inputs: frozenset[str]
    outputs: frozenset[str]


def _best_walk(
    model: ir.Model, prefer: dict[ir.Node, int], interface: _Interface, *, allow_statistical: bool
) -> Dependencies:
    best = _walk(model, prefer, interface, allow_statistical)
    tried = prefer
    for least, strategies in ((0.0, (_advance, _outer, _inner, _advance)), (_FEW, (_inner, _outer))):
        for strategy in strategies:
            stuck = [node for node in best.tracer.splits if _is_stuck(best, node, least)]
            if not stuck:
                break
            tried = {**best.tracer.prefer, **{node: strategy(tried.get(node, 0)) for node in stuck}}
            found = _walk(model, tried, interface, allow_statistical)
            if freedom(found) > freedom(best):
                best = found
    for strategy in (_inner, _outer):
        # One split alone may have no way out where its neighbours (queries, keys and values) must agree.
        stuck = [node for node in best.tracer.splits if _is_stuck(best, node, 0.0)] + _in_the_way(best)
        if not stuck:
            break
        together = _neighbourhood(best, stuck)
        found = _walk(
            model,
            {**best.tracer.prefer, **{node: strategy(0) for node in together}},
            interface,
            allow_statistical,
        )
        if freedom(found) > freedom(best):
            best = found
    return best


def _in_the_way(found: Dependencies) -> list[ir.Node]:
    """The splits that keep a layer from losing any channel, as another part of an axis carries the labels."""
    pins = [found.why_kept(made.value, made.axis) for made in _kept_whole(found)]
    stopping = {pin.node for pin in pins if pin is not None}
    return [node for node in found.tracer.splits if node in stopping]


def _kept_whole(found: Dependencies) -> Iterator[Producer]:
    for made in found.tracer.producers:
        if not (found.classes_of(made.value, made.axis) >= 0).any():
            yield made


def _neighbourhood(found: Dependencies, stuck: Collection[ir.Node]) -> list[ir.Node]:
    """The splits that are connected with `stuck` without a layer in between that makes new channels."""
    makers = {made.node for made in found.tracer.producers}
    reached = set(stuck)
    pending = list(stuck)
    while pending:
        node = pending.pop()
        for value in (*node.inputs, *node.outputs):
            if value is None or found.tracer.is_weight(value):
                continue
            maker = value.producer()
            ends = [maker] if maker is not None else []
            # A layer that makes channels belongs to what reads them, not to what it reads.
            ends += [user for user in value.consumers() if user not in makers]
            for end in ends:
                if end not in reached and end not in makers:
                    reached.add(end)
                    pending.append(end)
    return [node for node in found.tracer.splits if node in reached]


def _advance(preference: int) -> int:
    return max(preference, 0) + 1


def _outer(preference: int) -> int:
    del preference
    return OUTER


def _inner(preference: int) -> int:
    del preference
    return INNER


_FEW = 0.2
"""Where fewer of the classes that a split could have are left, it is at odds with another split."""


def _is_stuck(found: Dependencies, node: ir.Node, least: float) -> bool:
    """Whether what the input of a splitting node carries leaves little to choose, though a layer makes it.

    Args:
        found: The walk.
        node: One of its splits.
        least: Share of the indices of the chosen part that must be free classes; two must be in any case.
    """
    axes = [axis for value in node.inputs[:1] if value is not None for axis in found.tracer.axes[value]]
    arrays = [axis for axis in axes if isinstance(axis, np.ndarray) and found.tracer.is_made(axis)]
    free = [found.removable(axis) for axis in arrays]
    enough = max(2, least * found.tracer.splits[node])
    return bool(free) and all(len(np.unique(classes[classes >= 0])) < enough for classes in free)


def freedom(found: Dependencies) -> int:
    """How many classes could go at most: all but one of every producer."""
    classes = (found.classes_of(made.value, made.axis) for made in found.tracer.producers)
    return sum(max(len(np.unique(each[each >= 0])) - 1, 0) for each in classes)


def _walk(
    model: ir.Model, prefer: dict[ir.Node, int], interface: _Interface, allow_statistical: bool
) -> Dependencies:
    tracer = Tracer(_trace, prefer, allow_statistical=allow_statistical)
    resized = [value for value in model.graph.inputs if value.name in interface.inputs]
    for value in resized:
        tracer.label(value)
    for node in model.graph:
        _trace(node, tracer)
    for value in model.graph.outputs:
        if value.name in interface.outputs:
            for index in tracer.periodic(value):
                tracer.keep(value, index, None, f"an open size of graph output '{value.name}' stays")
            continue
        tracer.keep_value(value, tracer.labels.new_pin(None, f"graph output '{value.name}' keeps its shape"))
    found = Dependencies(model, ordered_nodes(model), tracer, tracer.labels.resolve())
    tracer.producers.extend(_given_channels(found, resized))
    return found


def _given_channels(found: Dependencies, inputs: Collection[ir.Value]) -> Iterator[Producer]:
    """The axes of inputs that layers read as channels; the first node that reads them is the producer."""
    tracer, read = found.tracer, [np.zeros(0, np.int64)]
    for contraction in tracer.contractions if inputs else ():
        operand = contraction.node.inputs[contraction.operand]
        if operand is not None and tracer.is_weight(operand):
            read.append(found.classes_of(operand, contraction.axis))
    for value in inputs:
        readers = value.consumers()
        for axis in range(len(tracer.known_dims(value) or ())):
            classes = found.classes_of(value, axis)
            if readers and np.isin(classes[classes >= 0], np.concatenate(read)).any():
                yield Producer(readers[0], value, axis)


def _trace(node: ir.Node, tracer: Tracer) -> None:
    if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
        return
    tracer.note_fixed(node)
    outside, tracer.labels.node = tracer.labels.node, node
    _handle(node, tracer)
    tracer.labels.node = outside


def _handle(node: ir.Node, tracer: Tracer) -> None:
    reason = _reason_to_stop(node, tracer)
    if reason is None:
        keep_open_sizes(node, tracer)
        reason = HANDLERS[node.op_type](node, tracer)
    if reason is not None:
        _stop(node, tracer, reason)
        for captured in _captured(node):
            tracer.keep_value(captured, tracer.labels.new_pin(node, f"its body reads '{captured.name}'"))


def _stop(node: ir.Node, tracer: Tracer, reason: str) -> None:
    tracer.stop(node, reason)
    pin = tracer.labels.new_pin(node, f"{reason}, from this size too")
    for value in node.inputs:
        # A shape operand that the node cannot correct.
        for size in labelled_sizes(entries(value, tracer)):
            tracer.labels.tie(pin, size.axis)


def _reason_to_stop(node: ir.Node, tracer: Tracer) -> str | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in HANDLERS:
        domain = f"{node.domain}::" if node.domain not in ("", "ai.onnx") else ""
        return f"how {domain}{node.op_type} treats its axes is not known"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.name != "" and tracer.known_dims(value) is None:
            return f"the shape of '{value.name}' is unknown"
    return None


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values from outside that the bodies of a node read."""
    inner: set[ir.Graph] = set()
    read: list[ir.Value] = []
    open_bodies = bodies_of(node)
    while open_bodies:
        body = open_bodies.pop()
        inner.add(body)
        read.extend(body.outputs)
        for each in body:
            read.extend(value for value in each.inputs if value is not None)
            open_bodies.extend(bodies_of(each))
    yield from dict.fromkeys(value for value in read if value.graph not in inner)
