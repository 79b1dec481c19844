"""Budgets: what a pruned model would cost, and the mildest pruning that meets a limit."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from ...ir.account import account
from ...ir.clone import clone
from ...ir.constants import constant_tensor
from ...ir.errors import PassError
from ...ir.inputs import input_shapes
from ...ir.macs import node_macs
from ...ir.shapes import bind_dims, infer_shapes
from ...ir.weights import weigh
from ..channels import Dependencies, Removal, plan_removal
from ..channels.places import addresses, ordered_nodes
from .latency import Machine, estimate
from .ranking import Candidate, Cut, Limits, cut_to

Kind = Literal["macs", "params", "bytes", "latency"]
KINDS: tuple[Kind, ...] = ("macs", "params", "bytes", "latency")
_SUFFIXES = {
    "": 1.0,
    "k": 1e3,
    "m": 1e6,
    "g": 1e9,
    "t": 1e12,
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "us": 1e-3,
    "ms": 1.0,
    "s": 1e3,
}
_STEPS = 16
_TRIALS = 128


@dataclass(frozen=True)
class Budget:
    """A limit on one figure.

    Attributes:
        kind: What is limited.
        limit: The share that may stay (0 to 1), or the absolute figure (milliseconds for latency).
        absolute: Whether it is the figure itself.
    """

    kind: Kind
    limit: float
    absolute: bool

    def of(self, original: float) -> float:
        """The limit as a figure, given that of the original model."""
        return self.limit if self.absolute else self.limit * original

    def __str__(self) -> str:
        return f"{self.kind}={self.limit:g}{' (absolute)' if self.absolute else ''}"


def parse_budget(kind: Kind, given: float | str, owner: str) -> Budget:
    """Read a budget: a share such as 0.5, or a figure such as 300M, 2.5MB or 1.5ms.

    Raises:
        PassError: It is neither, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-zA-Z]*)\s*", str(given), re.IGNORECASE)
    unit = match[2].lower() if match else "?"
    times = {"us", "ms", "s"}
    fits = unit in _SUFFIXES and (unit in times or unit == "" if kind == "latency" else unit not in times)
    try:
        number = float(match[1]) if match else -1.0
    except ValueError:
        number = -1.0
    absolute = unit != "" or number > 1.0
    if not fits or number <= 0.0 or (kind == "latency" and absolute and unit == ""):
        example = {"latency": "1.5ms", "bytes": "2.5MB"}.get(kind, "300M")
        raise PassError(
            f"{owner}: option '{kind}' takes the share to keep (0.5) or a figure ({example}), not '{given}'"
        )
    return Budget(kind, number * _SUFFIXES[unit], absolute)


@dataclass(frozen=True)
class Cost:
    """Figures of a model: MACs, parameters, bytes of them, and milliseconds by the cost model."""

    macs: float
    params: float
    bytes: float
    latency: float


class Sizer:
    """Costs of pruned versions of one model, without slicing a weight.

    Works on a copy whose shapes it changes and changes back; sliced weights have no data meanwhile. Symbolic
    dimensions get the sizes that random inputs would have.
    """

    def __init__(self, model: ir.Model, machine: Machine):
        self._machine = machine
        self._skeleton = clone(model)
        self._original = {name: _dims(value) for name, value in addresses(model).items()}
        shapes = input_shapes(model)
        symbols = {
            str(dim.value): shapes[str(value.name)][index]
            for value in model.graph.inputs
            if value.shape is not None and str(value.name) in shapes
            for index, dim in enumerate(value.shape)
            if not isinstance(dim, int) and dim.value is not None
        }
        if symbols:
            bind_dims(self._skeleton, symbols)
            infer_shapes(self._skeleton)
        self._values = addresses(self._skeleton)
        self._nodes = ordered_nodes(self._skeleton)
        self.before = self._figures(KINDS)

    def cost(self, removal: Removal, kinds: Collection[Kind] = KINDS) -> Cost:
        """The figures after a removal planned for the model; NaN for those that `kinds` does not ask for."""
        with contextlib.ExitStack() as undo:
            for name, shape in removal.shapes.items():
                value, before = self._values[name], self._original[name]
                dims = list(value.shape or ())
                undo.callback(setattr, value, "shape", value.shape)
                kept = [
                    new if isinstance(new, int) and new != old else dim
                    for new, old, dim in zip(shape, before, dims, strict=True)
                ]
                for axis, mask in removal.computed.get(name, {}).items():
                    size = kept[axis]
                    if not isinstance(shape[axis], int) and isinstance(size, int):
                        # The mask is that of one period of an open size.
                        kept[axis] = size * int(np.count_nonzero(mask)) // len(mask)
                value.shape = ir.Shape(kept)
            for name, axes in removal.slices.items():
                sizes = {axis: int(np.count_nonzero(mask)) for axis, mask in axes.items()}
                _shrink(self._values[name], sizes, undo, data="params" in kinds or "bytes" in kinds)
            for index, attribute, setting in removal.attributes:
                attributes = self._nodes[index].attributes
                undo.callback(_restore, attributes, attribute, attributes.get(attribute))
                _restore(
                    attributes,
                    attribute,
                    None if setting is None else ir.convenience.convert_attribute(attribute, setting),
                )
            return self._figures(kinds)

    def _figures(self, kinds: Collection[Kind]) -> Cost:
        graph, unknown = self._skeleton.graph, math.nan
        weights = weigh(graph) if "params" in kinds or "bytes" in kinds else None
        return Cost(
            self._macs() if "macs" in kinds else unknown,
            unknown if weights is None else float(weights.parameters),
            unknown if weights is None else float(weights.bytes),
            estimate(graph, self._machine) if "latency" in kinds else unknown,
        )

    def _macs(self) -> float:
        main = self._skeleton.graph
        if len(self._nodes) > len(main):
            # Branches and rounds of control flow are counted there.
            macs = account(self._skeleton).macs
            if macs is not None:
                return float(macs)
        found = (node_macs(node)[0] for node in self._nodes)
        return float(sum(macs for macs in found if isinstance(macs, int)))


def _dims(value: ir.Value) -> list[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape or ()]


def _restore(attributes: Any, name: str, attribute: ir.Attr | None) -> None:
    if attribute is None:
        attributes.pop(name, None)
    else:
        attributes[name] = attribute


def _shrink(value: ir.Value, sizes: dict[int, int], undo: contextlib.ExitStack, *, data: bool) -> None:
    """Give a constant a smaller shape until `undo`, and a tensor without data if its size is to be seen."""
    tensor = constant_tensor(value)
    assert tensor is not None
    shape = [sizes.get(axis, int(dim)) for axis, dim in enumerate(tensor.shape.numpy())]
    undo.callback(setattr, value, "shape", value.shape)
    value.shape = ir.Shape(shape)
    if not data:
        return
    size = int(math.prod(shape) * tensor.dtype.itemsize)
    empty = ir.ExternalTensor("none", 0, size, tensor.dtype, shape=value.shape, name=str(value.name))
    node = value.producer()
    if node is None:
        undo.callback(setattr, value, "const_value", value.const_value)
        value.const_value = empty
    else:
        for name in list(node.attributes):
            undo.callback(_restore, node.attributes, name, node.attributes.pop(name))
        undo.callback(_restore, node.attributes, "value", None)
        node.attributes["value"] = ir.AttrTensor("value", empty)


def mildest_ratio(
    meets: Callable[[float], bool], most: float = 1.0 - 1e-6, *, steps: int = _STEPS
) -> float | None:
    """The smallest ratio, to a resolution of 2^-steps, at which `meets` holds; None where it never does.

    `meets` must be monotonic: a larger ratio costs less.
    """
    if meets(0.0):
        return 0.0
    if not meets(most):
        return None
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2.0
        if meets(middle):
            high = middle
        else:
            low = middle
    return high


def give_back(
    candidates: Sequence[Candidate],
    cuts: Sequence[Cut],
    limits: Limits,
    meets: Callable[[Sequence[Cut]], bool],
) -> list[Cut]:
    """Put back what the budget leaves room for: groups of equal width all step at one ratio.

    Goes through the groups from the one whose next class is the most important, one step of `limits.multiple`
    channels at a time, until no group has room (or `_TRIALS` were looked at: large graphs).
    """
    by_group = {id(candidate.group): candidate for candidate in candidates}
    current = {id(cut.group): cut for cut in cuts}
    open_groups = {key for key, cut in current.items() if by_group[key].ratio is None}
    for _ in range(_TRIALS):
        if not open_groups:
            break
        key = max(
            open_groups, key=lambda key: (_next_score(by_group[key], current[key]), -_order(current[key]))
        )
        candidate, cut = by_group[key], current[key]
        kept = len(candidate.group.classes) - len(cut.removed)
        bigger = cut_to(candidate, kept + limits.step(candidate.group))
        trial = {**current, key: bigger}
        if bigger.removed != cut.removed and meets([each for each in trial.values() if each.removed]):
            current = trial
            if bigger.removed:
                continue
        # A group that had no room will have none later: what it would cost only grows.
        open_groups.discard(key)
    return [current[id(cut.group)] for cut in cuts if current[id(cut.group)].removed]


def _next_score(candidate: Candidate, cut: Cut) -> float:
    gone = set(cut.removed)
    scores = [
        score
        for name, score in zip(candidate.group.classes.tolist(), candidate.scores.tolist(), strict=True)
        if name in gone
    ]
    return max(scores, default=-math.inf)


def _order(cut: Cut) -> int:
    return int(cut.group.classes[0])


def removed_by(cuts: Sequence[Cut]) -> set[int]:
    """Names of all classes that go."""
    return {name for cut in cuts for name in cut.removed}


def plan(found: Dependencies, cuts: Sequence[Cut]) -> Removal:
    """The removal that some cuts are."""
    return plan_removal(found, removed_by(cuts))
