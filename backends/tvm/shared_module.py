"""What the programs of one module have in common: functions and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..weights import CHECK_FUNCTION, layout_number
from .emission import Emitted
from .spec import GroupSpec
from .strategy import Strategy


@dataclass
class Weights:
    """Constant arguments, each stored once: equal contents share a place, whatever they were made from."""

    arrays: list[np.ndarray] = field(default_factory=list)
    _known: dict[object, int] = field(default_factory=dict)
    _contents: dict[object, int] = field(default_factory=dict)

    def add(self, key: object, make: Callable[[], np.ndarray]) -> int:
        """Position of the array behind `key`, which `make` computes if it is new."""
        if key not in self._known:
            array = np.require(make(), requirements="C")
            digest = hashlib.blake2b(array.reshape(-1).view(np.uint8).data, digest_size=16).digest()
            content = (array.shape, array.dtype, digest)
            if content not in self._contents:
                self._contents[content] = len(self.arrays)
                self.arrays.append(array)
            self._known[key] = self._contents[content]
        return self._known[key]


@dataclass
class Function:
    """A function of the module: what it computes, its code, and the variable and name that it has there."""

    spec: GroupSpec
    emitted: Emitted
    variable: Any
    name: str

    @property
    def has_choices(self) -> bool:
        """Whether its template asked for parameters."""
        return self.emitted.choices is not None and bool(self.emitted.choices.asked)

    @property
    def is_tuned(self) -> bool:
        """Whether the schedule of a record decided anything."""
        choices = self.emitted.choices
        return choices is not None and len(choices.ignored) < len(choices.given)


class Shared:
    """What the programs of one module have in common: functions and weights."""

    def __init__(self) -> None:
        from tvm import relax

        self.builder = relax.BlockBuilder()
        self.functions: dict[tuple[str, bool], Function] = {}
        self.taken: dict[str, int] = {}
        self.weights = Weights()

    def add_shape(self, name: str, sizes: Sequence[int]) -> None:
        """A function without parameters that returns integers, for those who load the library."""
        from tvm import relax

        with self.builder.function(name, []):
            with self.builder.dataflow():
                shape = self.builder.emit_output(relax.ShapeExpr(list(sizes)))
            self.builder.emit_func_output(shape)

    def add_check(self) -> None:
        """A function that raises unless it is given `layout_number` of the weights, as a shape."""
        from tvm import relax

        number = relax.ShapeExpr([layout_number(self.weights.arrays)])
        given = relax.Var("layout", relax.ShapeType(number.values))
        with self.builder.function(CHECK_FUNCTION, [given]):
            with self.builder.dataflow():
                same = self.builder.emit_output(number)
            self.builder.emit_func_output(same)

    def finish(self, strategy: Strategy) -> Any:
        """The module, every function scheduled."""
        from tvm import relax, transform

        module = transform.Sequential(
            [
                relax.backend.DispatchSampling(),
                relax.backend.DispatchSortScan(),
                relax.transform.LegalizeOps(skip_ops=["relax.reshape"]),
                relax.transform.DeadCodeElimination(),
            ]
        )(self.builder.get())
        return strategy.schedule(module)
