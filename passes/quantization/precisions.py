"""Precisions by name: what activations and weights of a layer are stored as.

A table says which numbers its target prefers in 8 bits; the other precisions are the same everywhere.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import onnx_ir as ir

from ...ir.errors import PassError
from ...ir.provenance import module_path
from .arithmetic import Grid

if TYPE_CHECKING:
    from .tables import Table, Weighted

FLOAT = "float"
"""The precision of layers that are not quantized."""


@dataclass(frozen=True)
class Precision:
    """What a layer computes with.

    Attributes:
        name: what pipelines call it.
        purpose: one line for people.
        activations: type of activations, or None for those of the table.
        weights: type of weights, or None for those of the table.
        symmetric_activations: whether their zero point is fixed; None asks the table.
        bias: how biases are stored: "int32" fits products of two 8-bit numbers and of 16 by 8 bits.
    """

    name: str
    purpose: str
    activations: str | None = None
    weights: str | None = None
    symmetric_activations: bool | None = None
    bias: Literal["int32", "float"] = "int32"

    @property
    def is_float(self) -> bool:
        """Whether activations are 8-bit floats."""
        return (self.activations or "").startswith("float")


_E4M3, _E5M2 = "float8_e4m3fn", "float8_e5m2"
_PRECISIONS = (
    Precision("int8", "8 bits for activations and weights, of the kinds that the target prefers"),
    Precision("a16w8", "16-bit activations, 8-bit weights", "uint16"),
    Precision("a16w16", "16 bits for both", "int16", "int16", True, "float"),
    Precision("a8w4", "8-bit activations, 4-bit weights", None, "int4"),
    Precision("fp8-e4m3", "8-bit floats for both, 3 bits of fraction", _E4M3, _E4M3, True, "float"),
    Precision("fp8-e5m2", "8-bit floats for both, 2 bits of fraction", _E5M2, _E5M2, True, "float"),
)
PRECISIONS: Mapping[str, Precision] = {precision.name: precision for precision in _PRECISIONS}
"""The precisions by name."""


@dataclass(frozen=True)
class Formats:
    """The grids of each layer, from a table, the options of the pass and the overrides of single layers.

    Attributes:
        table: the target.
        precision_of: name of a node's precision, `FLOAT` for none.
        reduce_range: see `Table.weight_grid`.
        symmetric_activations: overrides table and precision where they leave a choice.
        symmetric_weights: likewise; asymmetric weights get a zero point per channel.
    """

    table: Table
    precision_of: Callable[[ir.Node], str]
    reduce_range: bool | None = None
    symmetric_activations: bool | None = None
    symmetric_weights: bool | None = None

    def activations(self, node: ir.Node) -> Grid:
        """The grid of what a node reads, and writes where it writes integers."""
        numbers = self.table.activations
        precision = PRECISIONS[self.precision_of(node)]
        dtype = precision.activations or numbers.dtype
        if precision.is_float:
            return Grid.make(dtype, symmetric=True)
        symmetric = numbers.symmetric if precision.symmetric_activations is None else True
        if self.symmetric_activations is not None:
            symmetric = self.symmetric_activations
        return Grid.make(dtype, symmetric=symmetric, bits=numbers.bits if dtype == numbers.dtype else None)

    def weights(self, node: ir.Node, kind: Weighted) -> Grid:
        """The grid of a node's weights."""
        precision = PRECISIONS[self.precision_of(node)]
        numbers = kind.weights or self.table.weights
        if precision.weights is not None and precision.weights != numbers.dtype:
            grid = Grid.make(precision.weights, symmetric=True)
        elif kind.weights is not None:
            grid = kind.weights.grid
        else:
            grid = self.table.weight_grid(self.reduce_range)
        if self.symmetric_weights is None or self.symmetric_weights == grid.symmetric or grid.is_float:
            return grid
        # Two symmetric 8-bit numbers are 254 apart, two of 7 bits 128.
        bits = round(math.log2(grid.high - grid.low + 1))
        dtype = grid.dtype.removeprefix("u") if self.symmetric_weights else grid.dtype
        return Grid.make(dtype, symmetric=self.symmetric_weights, bits=bits if bits == 7 else None)

    def kind(self, node: ir.Node) -> Weighted:
        """The table's entry for a node, as the node's precision changes it."""
        precision = PRECISIONS[self.precision_of(node)]
        kind = self.table.weighted[node.op_type]
        bias: Literal["int32", "float"] = "float" if precision.bias == "float" else kind.bias
        # Kernels for 8-bit floats write wider floats.
        return dataclasses.replace(kind, bias=bias, result="any" if precision.is_float else kind.result)

    def has_followers(self, node: ir.Node) -> bool:
        """Whether operators without weights run on the numbers of a node's precision.

        8-bit floats are for products only: nothing adds or pools them, and ONNX Runtime, asked to, makes
        integer operators of the pairs around such a node, which then do not load.
        """
        return not PRECISIONS[self.precision_of(node)].is_float


def precision_selector(default: str, layers: str | None, owner: str) -> Callable[[ir.Node], str]:
    """Reads "REGEX=PRECISION;...": the first that matches a node's name, module path or op type counts.

    Args:
        default: precision of all other nodes.
        layers: the text, or None.
        owner: name of the pass, for messages.

    Raises:
        PassError: a part is no pair, no regular expression, or names no precision.
    """
    chosen: list[tuple[re.Pattern[str], str]] = []
    for part in [part.strip() for part in (layers or "").split(";") if part.strip()]:
        pattern, equals, name = part.rpartition("=")
        if not equals or not pattern:
            raise PassError(f"{owner}: option 'layers' wants REGEX=PRECISION;..., not '{part}'")
        if name not in (*PRECISIONS, FLOAT):
            known = ", ".join((*PRECISIONS, FLOAT))
            raise PassError(f"{owner}: option 'layers' names the precision '{name}'; there are: {known}")
        try:
            chosen.append((re.compile(pattern), name))
        except re.error as error:
            raise PassError(
                f"{owner}: option 'layers': '{pattern}' is not a regular expression ({error})"
            ) from None

    def precision_of(node: ir.Node) -> str:
        faces = [face for face in (node.name, module_path(node), node.op_type) if face]
        for pattern, name in chosen:
            if any(pattern.match(face) for face in faces):
                return name
        return default

    return precision_of


def check_precisions(table: Table, names: set[str]) -> None:
    """Refuses precisions that a target has no kernels for.

    Raises:
        PassError: with one line that says what the table has.
    """
    for name in sorted(names - {FLOAT}):
        if name not in table.precisions:
            raise PassError(
                f"quantization table '{table.name}' has no {name}; it has: {', '.join(table.precisions)}"
            )
