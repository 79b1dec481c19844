"""What each target quantizes, as data.

A table says which operators have integer kernels there, what those kernels want (types, symmetry, whether the
result must be integer too, the type of the bias), which operators let quantized values through, what a kernel
fuses behind itself, and what stays in float. Placement reads it and knows no target by name.

The x86 tables: without VNNI, `vpmaddubsw` adds two uint8 x int8 products into 16 bits and saturates. ONNX
Runtime uses it, so the table `x86`, whose files must be right on every x86 machine, keeps weights to 7 bits.
Kernels that do not saturate (VNNI, `vpmaddwd`, Graphwright's own) take the full 8: table `x86-vnni`, or
`reduce_range=false`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...ir.errors import PassError
from .arithmetic import Grid
from .table_kinds import check_kinds

# What placement knows how to handle under each heading of a table.
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_COMPUTED = ("Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu", "Softmax")
_MOVES = (
    *("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather"),
    *("DepthToSpace", "SpaceToDepth", "Resize", "Concat"),
)
_TAILS = ("Relu", "Clip")
_ACTIVATIONS = ("uint8", "int8", "uint16", "int16", "float8_e4m3fn", "float8_e5m2")
_WEIGHTS = ("int8", "uint8", "int16", "int4", "uint4", "float8_e4m3fn", "float8_e5m2")


@dataclass(frozen=True)
class Numbers:
    """The integers of one kind of operand: numpy type name, symmetry, bits used (None: all)."""

    dtype: str = "int8"
    symmetric: bool = True
    bits: int | None = None

    @property
    def grid(self) -> Grid:
        """The grid these numbers lie on."""
        return Grid.make(self.dtype, symmetric=self.symmetric, bits=self.bits)


def _check_numbers(where: str, what: str, numbers: Numbers, known: Sequence[str]) -> None:
    if numbers.dtype not in known:
        raise PassError(f"{where}: {what} must be {', '.join(known)}, not {numbers.dtype}")
    if not isinstance(numbers.symmetric, bool):
        raise PassError(f"{where}: symmetric of {what} is {numbers.symmetric!r}, not true or false")
    try:
        numbers.grid  # noqa: B018
    except (ValueError, TypeError) as error:
        raise PassError(f"{where} contradicts itself: {what}: {error}") from None


@dataclass(frozen=True)
class Weighted:
    """An operator with constant weights and an integer kernel.

    Attributes:
        weights: integers of its weights; None takes those of the table.
        min_channels: with fewer channels in or out than this, integers win nothing and it stays in float.
        result: "integer" where the kernel writes integers only, so that a quantization follows directly;
            "any" where it can also leave float.
        per_channel: one weight scale per output channel instead of one per tensor.
        bias: "int32" with scale input scale * weight scale, or "float" where the kernel adds it in float.
    """

    result: Literal["integer", "any"] = "integer"
    per_channel: bool = True
    bias: Literal["int32", "float"] = "int32"
    weights: Numbers | None = None
    min_channels: int = 1


@dataclass(frozen=True)
class Table:
    """What one target quantizes, and how.

    Attributes:
        name: name by which pipelines ask for it.
        purpose: one line for people.
        activations: integers of activations, one scale per tensor.
        weights: integers of weights.
        reduced_weight_bits: bits of weights where sums would saturate otherwise; None uses all of `weights`.
        weighted: operators with constant weights that have an integer kernel.
        computed: operators that compute on quantized inputs and give a result with a scale of its own.
        shared: operators that move values only: inputs and results have one common scale.
        tails: activations fused behind a kernel: the quantization comes after them.
        keeps_float: operators that stay in float for a reason worth telling.
        first_layer: what becomes of weighted operators that read the model's inputs: "quantize" or "float".
        last_layer: and of those behind which there is no other.
        restore_floats: how 8-bit floats are restored: "dequantize" by DequantizeLinear, as TensorRT wants it;
            "cast" by Cast and Mul, because ONNX Runtime makes an integer operator of any Conv between pairs,
            whatever their type, which then does not load.
        precisions: names of the precisions (`precisions.py`) that the target has kernels for.
        embeddings: whether constant tables that Gather reads become integers, with one scale per row or per
            column: "quantize" or "float".
        products: whether both operands of a MatMul without constants (attention's scores and values) become
            integers, in 8 bits: "quantize" or "float".
    """

    name: str
    purpose: str
    activations: Numbers = field(default_factory=lambda: Numbers("uint8", symmetric=False))
    weights: Numbers = field(default_factory=Numbers)
    reduced_weight_bits: int | None = None
    weighted: Mapping[str, Weighted] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    tails: tuple[str, ...] = ("Relu", "Clip")
    keeps_float: Mapping[str, str] = field(default_factory=dict)
    first_layer: Literal["quantize", "float"] = "quantize"
    last_layer: Literal["quantize", "float"] = "quantize"
    restore_floats: Literal["cast", "dequantize"] = "cast"
    precisions: tuple[str, ...] = ("int8",)
    embeddings: Literal["quantize", "float"] = "quantize"
    products: Literal["quantize", "float"] = "float"

    def __post_init__(self) -> None:
        where = f"quantization table '{self.name}'"
        own = [each.weights for each in self.weighted.values() if each.weights]
        _check_numbers(where, "activations", self.activations, _ACTIVATIONS)
        for numbers in (self.weights, *own):
            _check_numbers(where, "weights", numbers, _WEIGHTS)
        try:
            self.weight_grid(None)
        except (ValueError, TypeError) as error:
            raise PassError(f"{where} contradicts itself: {error}") from None
        if self.reduced_weight_bits is not None and self.weights.dtype not in ("int8", "uint8"):
            raise PassError(f"{where}: reduced_weight_bits is for 8-bit weights, not {self.weights.dtype}")
        self._check_policy(where)
        self._check_operators()

    def _check_policy(self, where: str) -> None:
        for name in ("first_layer", "last_layer", "embeddings", "products"):
            if getattr(self, name) not in ("quantize", "float"):
                raise PassError(f"{where}: {name} is '{getattr(self, name)}', not 'quantize' or 'float'")
        if self.restore_floats not in ("cast", "dequantize"):
            raise PassError(f"{where}: restore_floats is '{self.restore_floats}', not 'cast' or 'dequantize'")
        for op_type, kind in self.weighted.items():
            if not isinstance(kind.min_channels, int) or kind.min_channels < 1:
                raise PassError(
                    f"{where}: min_channels of '{op_type}' is {kind.min_channels!r}, not 1 or more"
                )
        from .precisions import PRECISIONS

        unknown = [name for name in self.precisions if name not in PRECISIONS]
        if unknown:
            raise PassError(f"{where}: there is no precision '{unknown[0]}', only {', '.join(PRECISIONS)}")

    def _check_operators(self) -> None:
        where = f"quantization table '{self.name}'"
        places = [*self.weighted, *self.computed, *self.shared, *self.keeps_float]
        twice = sorted({name for name in places if places.count(name) > 1})
        if twice:
            raise PassError(f"{where} lists '{twice[0]}' under two headings")
        for heading, given, known in (
            ("weighted", self.weighted, _WEIGHTED),
            ("computed", self.computed, _COMPUTED),
            ("shared", self.shared, _MOVES),
            ("tails", self.tails, _TAILS),
        ):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise PassError(f"{where}: '{unknown[0]}' cannot be {heading}, only {', '.join(known)}")
        for name, kind in self.weighted.items():
            for option, values in (("result", ("integer", "any")), ("bias", ("int32", "float"))):
                if getattr(kind, option) not in values:
                    raise PassError(
                        f"{where}: {option} of '{name}' is '{getattr(kind, option)}', not '{values[0]}' or "
                        f"'{values[1]}'"
                    )

    def weight_grid(self, reduce_range: bool | None) -> Grid:
        """The integers of weights.

        Args:
            reduce_range: whether to give up bits against saturation; None asks the table.
        """
        bits = self.reduced_weight_bits
        if reduce_range is True:
            bits = bits or 7
        elif reduce_range is False:
            bits = None
        return dataclasses.replace(self.weights, bits=bits or self.weights.bits).grid

    def to_json(self) -> dict[str, Any]:
        """The table as plain data; `table_from_json` reads it back."""
        return dataclasses.asdict(self)


_PRECISION = "it loses too much precision in 8 bits"
_DELICATE = (
    *("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization", "InstanceNormalization"),
    *("GroupNormalization", "Gelu", "Erf", "Attention", "RotaryEmbedding"),
)
# Operators that ONNX Runtime's CPU provider turns into integer kernels; found by reading its optimized
# graphs.
_CPU_WEIGHTED = {
    "Conv": Weighted(),
    "Gemm": Weighted(result="any"),
    "MatMul": Weighted(result="any"),
}
_CPU_MOVES = tuple(name for name in _MOVES if name != "SpaceToDepth")
_CPU_COMPUTED = ("Add", "Mul", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu")
_CPU_PRECISIONS = ("int8", "a16w8", "a16w16", "a8w4")
_NO_KERNEL = "there is no integer kernel for it on this target"
_RECURRENT = dict.fromkeys(
    ("LSTM", "GRU", "RNN"), f"{_NO_KERNEL}; quantize-weights stores its weights in 8 bits or fewer"
)
_KEEPS_FLOAT = dict.fromkeys(_DELICATE, _PRECISION) | _RECURRENT
_CPU_NO_KERNEL = {"ConvTranspose": _NO_KERNEL}

_TABLES = (
    Table(
        name="x86",
        purpose="any x86-64 CPU; weights use 7 bits, because sums saturate in ONNX Runtime without VNNI",
        reduced_weight_bits=7,
        weighted=_CPU_WEIGHTED,
        computed=_CPU_COMPUTED,
        shared=_CPU_MOVES,
        keeps_float=_KEEPS_FLOAT | _CPU_NO_KERNEL,
        precisions=_CPU_PRECISIONS,
    ),
    Table(
        name="x86-vnni",
        purpose="x86-64 CPUs with VNNI, or kernels that do not saturate: full 8-bit weights",
        weighted=_CPU_WEIGHTED,
        computed=_CPU_COMPUTED,
        shared=_CPU_MOVES,
        keeps_float=_KEEPS_FLOAT | _CPU_NO_KERNEL,
        precisions=_CPU_PRECISIONS,
    ),
    Table(
        name="arm",
        purpose="ARM CPUs: int8 by int8, widening NEON sums cannot overflow with weights in [-127, 127]",
        activations=Numbers("int8", symmetric=False),
        weighted=_CPU_WEIGHTED,
        computed=_CPU_COMPUTED,
        shared=_CPU_MOVES,
        keeps_float=_KEEPS_FLOAT | _CPU_NO_KERNEL,
        precisions=_CPU_PRECISIONS,
    ),
    Table(
        name="arm-dotprod",
        purpose="ARM CPUs with sdot: int8 by int8",
        activations=Numbers("int8", symmetric=False),
        weighted=_CPU_WEIGHTED,
        computed=_CPU_COMPUTED,
        shared=_CPU_MOVES,
        keeps_float=_KEEPS_FLOAT | _CPU_NO_KERNEL,
        precisions=_CPU_PRECISIONS,
    ),
    Table(
        name="cuda",
        purpose="NVIDIA GPUs, TensorRT style: everything symmetric int8, zero points 0",
        activations=Numbers("int8", symmetric=True),
        weighted=_CPU_WEIGHTED | {"ConvTranspose": Weighted()},
        computed=("Add", "AveragePool", "GlobalAveragePool"),
        shared=_MOVES,
        keeps_float=_KEEPS_FLOAT,
        restore_floats="dequantize",
        # TensorRT wants integers between pairs of one scale only.
        embeddings="float",
        precisions=("int8", "a8w4", "fp8-e4m3", "fp8-e5m2"),
    ),
    Table(
        name="tvm",
        purpose="Graphwright's own kernels: full 8-bit weights, sums go on in float until a layer reads them",
        weighted={name: Weighted(result="any") for name in (*_CPU_WEIGHTED, "ConvTranspose")},
        computed=("AveragePool", "GlobalAveragePool"),
        shared=_CPU_MOVES,
        keeps_float=_KEEPS_FLOAT,
        precisions=_CPU_PRECISIONS,
    ),
    Table(
        name="generic",
        purpose="no particular device: uint8 activations, full 8-bit weights",
        weighted=_CPU_WEIGHTED,
        computed=_CPU_COMPUTED,
        shared=_CPU_MOVES,
        keeps_float=_KEEPS_FLOAT | _CPU_NO_KERNEL,
        precisions=(*_CPU_PRECISIONS, "fp8-e4m3", "fp8-e5m2"),
    ),
)
TABLES: Mapping[str, Table] = {table.name: table for table in _TABLES}
"""The tables that come with the package, by name."""


def find_table(name: str | None, target: Any = None) -> Table:
    """The table for a name, a JSON file, or a target description.

    Args:
        name: name of a table, or path of a `.json` file with one; None decides by `target`.
        target: object with `kind`, `triple` and `features` (a target description), its name, or None.

    Raises:
        PassError: no such table or file, or the file is no table.
    """
    if name is None:
        return TABLES[_name_for(target)]
    if name in TABLES:
        return TABLES[name]
    if name.endswith(".json"):
        return _read(Path(name))
    raise PassError(f"there is no quantization table '{name}'; tables: {', '.join(TABLES)}, or a .json file")


def table_from_json(data: Mapping[str, Any]) -> Table:
    """Builds a table from plain data, as `Table.to_json` gives it.

    Raises:
        PassError: an entry is unknown, missing or contradicts another.
    """
    entries = dict(data)
    known = [each.name for each in dataclasses.fields(Table)]
    unknown = [key for key in entries if key not in known]
    if unknown:
        raise PassError(
            f"quantization table '{entries.get('name', '?')}' has an unknown entry '{unknown[0]}'; "
            f"entries are: {', '.join(known)}"
        )
    check_kinds(entries, Weighted, Numbers)
    try:
        for key in ("activations", "weights"):
            if key in entries:
                entries[key] = Numbers(**entries[key])
        entries["weighted"] = {op: _weighted(each) for op, each in entries.get("weighted", {}).items()}
        for key in ("computed", "shared", "tails", "precisions"):
            if key in entries:
                entries[key] = tuple(entries[key])
        table = Table(**entries)
    except (TypeError, AttributeError) as error:
        raise PassError(f"quantization table '{entries.get('name', '?')}': {error}") from None
    for heading in ("weighted", "precisions"):
        if not getattr(table, heading):
            raise PassError(
                f"quantization table '{table.name}': '{heading}' names nothing, so nothing can be quantized"
            )
    return table


def _weighted(entry: Mapping[str, Any]) -> Weighted:
    weights = entry.get("weights")
    return Weighted(**{**entry, "weights": None if weights is None else Numbers(**weights)})


def _read(path: Path) -> Table:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PassError(f"cannot read the quantization table '{path}': {error}") from None
    if not isinstance(data, dict):
        raise PassError(f"quantization table '{path}' is not a JSON object")
    return table_from_json({"name": path.stem, "purpose": f"from {path.name}", **data})


def _name_for(target: Any) -> str:
    """The table of a target description; what is not known to be better counts as the plainest kind."""
    if target is None:
        return "generic"
    if isinstance(target, str):
        return target if target in TABLES else "generic"
    if getattr(target, "kind", None) == "cuda":
        return "cuda"
    architecture = str(getattr(target, "triple", "") or "").split("-")[0]
    features = " ".join(str(feature) for feature in getattr(target, "features", ()) or ())
    if architecture in ("aarch64", "arm64"):
        return "arm-dotprod" if "dotprod" in features else "arm"
    if architecture in ("x86_64", "amd64"):
        return "x86-vnni" if "vnni" in features else "x86"
    return "generic"
