"""One operator as the lowering sees it: plain attributes and types, static inputs as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from ...ir.errors import CompileError, ShapeError
from .lazy import Lazy

# Inputs that decide what code is generated, per operator; they must be known when the model is compiled.
STATIC_INPUTS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Split": (1,),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
    "CumSum": (1,),
    "TopK": (1,),
    "OneHot": (1,),
    "ConstantOfShape": (0,),
    "Dropout": (1, 2),
    "Trilu": (1,),
    "CenterCropPad": (1,),
    **{
        f"Reduce{kind}": (1,)
        for kind in ("Max", "Min", "Sum", "Mean", "Prod", "LogSumExp", "LogSum", "SumSquare", "L1", "L2")
    },
}


@dataclass(frozen=True)
class Type:
    """Static shape and element type (TVM's name) of a value."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Derived:
    """A constant argument of a function: computed from constant inputs of the group when it is called."""

    sources: tuple[int, ...]
    compute: Callable[..., np.ndarray]


@dataclass
class Op:
    """A node without its graph.

    `static` holds the values of inputs that are known at compile time and decide the code (small ones, by
    `STATIC_INPUTS`, and scalars). `derive` asks for a constant computed from the constant inputs given by
    position; it is absent while operators are only being asked what they could do.
    """

    type: str
    name: str
    attributes: dict[str, Any]
    inputs: tuple[Type | None, ...]
    outputs: tuple[Type, ...]
    static: dict[int, np.ndarray] = field(default_factory=dict)
    constant: frozenset[int] = frozenset()
    """Inputs whose contents are constant (but not part of the code)."""
    derive: Callable[[Sequence[int], Callable[..., np.ndarray]], Lazy] | None = None
    used_outputs: tuple[bool, ...] = ()

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute, or `default` where the node has none."""
        return self.attributes.get(name, default)

    def has(self, position: int) -> bool:
        """Whether an optional input is given."""
        return position < len(self.inputs) and self.inputs[position] is not None

    def input(self, position: int) -> Type:
        """The type of an input that must be there."""
        given = self.inputs[position] if position < len(self.inputs) else None
        if given is None:
            raise self.error(f"input {position} is missing")
        return given

    @property
    def rank(self) -> int:
        """Rank of the first input."""
        return len(self.input(0).shape)

    def axis(self, name: str = "axis", default: int = 0, rank: int | None = None) -> int:
        """An axis attribute, counted from the front."""
        rank = self.rank if rank is None else rank
        axis = int(self.attr(name, default))
        return axis + rank if axis < 0 else axis

    def ints(self, position: int) -> list[int] | None:
        """A static integer input as a list; None where it is absent.

        Raises:
            CompileError: the input is only known when the model runs.
        """
        if not self.has(position):
            return None
        if position not in self.static:
            raise self.error(
                f"input {position} must be known when the model is compiled; "
                "fold it or export with static shapes"
            )
        return [int(each) for each in self.static[position].reshape(-1)]

    def table(self, array: np.ndarray) -> Lazy:
        """A constant table that belongs to the code (it follows from attributes and static inputs)."""
        assert self.derive is not None
        return self.derive((), lambda: array)

    def error(self, problem: str) -> CompileError:
        """One line that names the node."""
        return CompileError(f"node '{self.name}' ({self.type}): {problem}")


def type_of(value: ir.Value) -> Type:
    """The static type of a value.

    Raises:
        ShapeError: a dimension is unknown or symbolic.
        CompileError: the element type is unknown.
    """
    if value.dtype is None:
        raise CompileError(f"the element type of '{value.name}' is unknown; run shape inference first")
    if value.shape is None:
        raise ShapeError(f"the shape of '{value.name}' is unknown; run shape inference first")
    dims = []
    for axis, dim in enumerate(value.shape):
        if not isinstance(dim, int):
            raise ShapeError(
                f"dimension {axis} of '{value.name}' is {dim}; bind it to a number before compiling"
            )
        dims.append(dim)
    return Type(tuple(dims), dtype_name(value.dtype, str(value.name)))


def dtype_name(dtype: ir.DataType, owner: str) -> str:
    """TVM's name of an ONNX element type.

    Raises:
        CompileError: strings, complex numbers and the like; bfloat16, whose vectors TVM 0.27 cannot store.
    """
    names = {
        ir.DataType.FLOAT: "float32",
        ir.DataType.DOUBLE: "float64",
        ir.DataType.FLOAT16: "float16",
        ir.DataType.BOOL: "bool",
    }
    if dtype in names:
        return names[dtype]
    name = dtype.name.lower()
    if name in {"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"}:
        return name
    raise CompileError(f"'{owner}' has element type {dtype.name}, which the TVM backend does not compile")


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """The attributes of a node as Python values (tensors as numpy arrays, graphs as they are)."""
    return {name: _plain(attribute) for name, attribute in node.attributes.items()}


def _plain(attribute: ir.Attr) -> Any:
    value = attribute.value
    if attribute.type == ir.AttributeType.STRING:
        return value.decode() if isinstance(value, bytes) else value
    if attribute.type == ir.AttributeType.STRINGS:
        return tuple(each.decode() if isinstance(each, bytes) else each for each in value)
    if attribute.type == ir.AttributeType.TENSOR:
        return value.numpy()
    if isinstance(value, list | tuple):
        return tuple(value)
    return value


def static_positions(op_type: str) -> tuple[int, ...]:
    """Inputs of an operator type that decide the code."""
    return STATIC_INPUTS.get(op_type, ())
