"""From the structure of a group to a function and the arguments that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from . import loops
from .layout import CANONICAL
from .lazy import Index, Lazy, from_buffer
from .op import Derived
from .spec import GroupSpec, contents

if TYPE_CHECKING:
    from .kernels.choices import Choices


@dataclass(frozen=True)
class Packed:
    """A constant argument that is stored in the order in which a kernel reads it."""

    external: int
    pack: Callable[[np.ndarray], np.ndarray]


Argument = int | Packed | Derived
"""An external input by position, or a constant made from external constants."""


@dataclass(frozen=True)
class Emitted:
    """One function; `arguments` are its parameters before the output."""

    func: Any
    arguments: tuple[Argument, ...]
    kind: str
    flops: int = 0
    note: str = ""
    workload: str = ""
    """Key of its tuning records; "" where there is nothing to choose."""
    choices: Choices | None = None
    """What its template chose."""


Make = Callable[[tuple[int, ...], str, str], Any]


@dataclass
class Parameters:
    """Collects the parameters of a function while a group is evaluated.

    `make(shape, dtype, name)` creates one: a TIR buffer or a TE placeholder.
    """

    spec: GroupSpec
    make: Make
    buffers: list[Any] = field(default_factory=list)
    arguments: list[Argument] = field(default_factory=list)
    _known: dict[int, Lazy] = field(default_factory=dict)

    def bind(self, external: int) -> Lazy:
        """The lazy that reads an external input; what is never read does not become a parameter."""
        given = self.spec.externals[external]

        def read(index: Index) -> Any:
            if external not in self._known:
                shape = given.layout.stored_shape(given.type.shape)
                buffer = self._add(shape, given.type.dtype, external)
                self._known[external] = from_buffer(buffer, given.type.shape, given.type.dtype, given.layout)
            return self._known[external].read(index)

        return Lazy(given.type.shape, given.type.dtype, read)

    def derive(self, derived: Derived) -> Lazy:
        """The lazy that reads a derived constant."""
        sample = derived.compute(*(contents(self.spec, source) for source in derived.sources))
        dtype = str(sample.dtype)
        return from_buffer(self._add(sample.shape, dtype, derived), sample.shape, dtype, CANONICAL)

    def _add(self, shape: tuple[int, ...], dtype: str, argument: Argument) -> Any:
        buffer = self.make(shape, dtype, f"p{len(self.buffers)}")
        self.buffers.append(buffer)
        self.arguments.append(argument)
        return buffer


def tir_parameters(spec: GroupSpec) -> Parameters:
    """Parameters of a function that is written down as loops."""
    return Parameters(spec, lambda shape, dtype, name: loops.buffer(shape, dtype, name))


def te_parameters(spec: GroupSpec) -> Parameters:
    """Parameters of a function that is given as tensor expressions."""

    def make(shape: tuple[int, ...], dtype: str, name: str) -> Any:
        from tvm import te

        return te.placeholder(shape, dtype, name)

    return Parameters(spec, make)
